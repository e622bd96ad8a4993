from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_client import Ablation, DebugSubRequest, Node, NodeError, Trace, head, latent, neuron
from tdb_client.decoding import node as decoded
from tdb_client.encoding import node_index

counts = st.integers(0, 10**6)
positions = st.integers(-5000, 5000)


@st.composite
def nodes(draw: st.DrawFn, tokens: st.SearchStrategy[int] = positions) -> Node:
    kind = draw(
        st.sampled_from(
            [
                "attention_head",
                "qk_channel",
                "v_channel",
                "mlp_neuron",
                "autoencoder_latent",
                "mlp_autoencoder_latent",
                "attention_autoencoder_latent",
                "residual_stream_channel",
                "layer",
                "vocab_token",
                "whole_head",
                "whole_mlp",
            ]
        )
    )
    layers = st.none() if kind == "vocab_token" else counts
    if kind in ("residual_stream_channel", "layer"):
        layers = st.none() | counts
    return Node(
        type=kind,
        layer=draw(layers),
        index=0 if kind in ("layer", "whole_mlp") else draw(counts),
        token=draw(tokens),
        attended_to=draw(st.none() | tokens)
        if kind in ("attention_head", "residual_stream_channel")
        else None,
        head=draw(counts) if kind in ("qk_channel", "v_channel") else None,
        is_gradient=draw(st.booleans()),
    )


@given(nodes())
def test_every_node_is_read_as_it_is_spelled(node: Node) -> None:
    assert Node.parse(str(node)) == node


@given(nodes(tokens=st.integers(0, 5000)))
def test_every_node_survives_the_wire(node: Node) -> None:
    assert decoded(node_index(node)) == node


@given(nodes(), st.floats(allow_nan=False, allow_infinity=False))
def test_every_ablation_is_read_as_it_is_spelled(node: Node, value: float) -> None:
    assert Ablation.parse(str(Ablation(node, value))) == Ablation(node, value)


@given(nodes(), st.sampled_from([None, "Q", "K", "QK", "V"]), st.booleans())
def test_every_trace_is_read_as_it_is_spelled(node: Node, through: str | None, post_act: bool) -> None:
    trace = Trace(node, through, post_act)  # type: ignore[arg-type]
    assert Trace.parse(str(trace)) == trace


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    for read in (Node.parse, Ablation.parse, Trace.parse):
        with suppress(NodeError):
            read(text)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("L23 head 1 @ -1", head(23, 1, token=-1)),
        (" l9 HEAD 6@13->2 ", head(9, 6, token=13, attended_to=2)),
        ("L9 head 6 @ 13 → 2", head(9, 6, token=13, attended_to=2)),
        ("L5 neuron 123 @ 7", neuron(5, 123, token=7)),
        ("L5 latent 9 @ 7", latent(5, 9, token=7)),
        ("L5 mlp latent 9 @ 7", latent(5, 9, token=7, site="mlp")),
        ("L5 attention latent 9 @ 7", latent(5, 9, token=7, site="attention")),
        ("embedding @ 3", Node("layer", None, 0, 3)),
    ],
)
def test_spellings_of_the_documents(text: str, node: Node) -> None:
    assert Node.parse(text) == node


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("L5", "is not a node, such as"),
        ("neuron 5 @ 3", "which layer"),
        ("L5 neuron @ 3", "must have a number after 'neuron'"),
        ("L5 layer 4 @ 3", "must not have a number"),
        ("L5 neuron 1 @ 3 -> 2", "only attention"),
        ("L5 logit 1 @ 3", "logits belong to none"),
        ("L5 qk channel 1 @ 3", "belongs to a head"),
        ("L5 neuron ５ @ 3", "is not a node"),
    ],
)
def test_misspellings_say_what_is_wrong(text: str, hint: str) -> None:
    with pytest.raises(NodeError, match=hint):
        Node.parse(text)


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "1=2"])
def test_ablations_need_a_finite_number(value: str) -> None:
    with pytest.raises(NodeError, match="finite number"):
        Ablation.parse(f"L5 neuron 1 @ 3 = {value}")


def test_nodes_in_words_name_their_tokens() -> None:
    tokens = ["When", " Mary", " it's"]
    assert head(9, 6, token=2, attended_to=1).words(tokens) == "L9 head 6, \" it's\" → ' Mary'"
    assert neuron(5, 1, token=0).words(tokens) == "L5 neuron 1, 'When'"
    assert Node.parse("embedding @ 1").words(tokens) == "embedding, ' Mary'"


def test_negative_tokens_count_from_the_end() -> None:
    assert head(9, 6, token=-1, attended_to=-14).resolve(14) == head(9, 6, token=13, attended_to=0)
    assert head(9, 6, token=99).resolve(14) == head(9, 6, token=99)  # for the server to refuse
    with pytest.raises(NodeError, match="token -15 does not exist in a prompt of 14 tokens"):
        neuron(5, 1, token=-15).resolve(14)


@pytest.mark.parametrize("words", [5, None, ("L1 head 2 @ 3", 1.0)])
def test_what_is_no_ablation_and_no_trace(words: Any) -> None:
    with pytest.raises(NodeError, match="is no ablation, such as"):
        DebugSubRequest.of("p", 7, ablate=words)
    if words is not None:
        with pytest.raises(NodeError, match="is no trace, such as"):
            DebugSubRequest.of("p", 7, trace=words)

"""Ways to compute that are chosen by size or device give the answers of those that run here by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import InferenceSubRequest, LossConfig, LossName, MultipleTopKSpec
from tdb_server.engine import block_maxima, products
from tdb_server.engine.engine import Engine

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import EVERY_NODE, Answer, answers_of_calls, examples, inference
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.scalars_of_sites import ranked_scalars
from tests.property.small_models import TOP_K, SmallModel, small_autoencoder, small_model

SITES = (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)
NAMES = pytest.mark.parametrize("name", ["gpt2-deep-untied", "llama-deep-wide-heads"])
Calls = list[list[InferenceSubRequest]]
Another = Callable[[pytest.MonkeyPatch, Engine], None]


def in_parts_of(max_entries: int) -> Another:
    """Layer by layer, and in parts of a few rows or tokens, as long prompts are gone through."""
    return lambda patch, _: patch.setitem(products.MAX_TOGETHER, "cpu", max_entries)


def ranks_plainly(patch: pytest.MonkeyPatch, _: Engine) -> None:
    """As on a GPU."""
    patch.setattr(block_maxima, "SMALL", 10**9)


def ranks_tokens_at_once(patch: pytest.MonkeyPatch, engine: Engine) -> None:
    """As on a GPU."""
    patch.setattr(engine._ranker, "remembers", False)


WAYS = {
    "numbers one by one": in_parts_of(1),
    "small parts": in_parts_of(150),
    "plain ranking": ranks_plainly,
    "tokens at once": ranks_tokens_at_once,
}


def engine_of(model: SmallModel, name: str, top_k: int | None) -> Engine:
    return model.engine(*(small_autoencoder(name, site, top_k) for site in SITES))


def answers_both_ways(engine: Engine, calls: Calls, *others: Another) -> list[tuple[Answer, Answer]]:
    """Of every sub-request, by default and another way."""
    found = answers_of_calls(engine, calls)
    with pytest.MonkeyPatch.context() as patch:
        for other in others:
            other(patch, engine)
        again = answers_of_calls(engine, calls)
    return [
        pair for one, another in zip(found, again, strict=True) for pair in zip(one, another, strict=True)
    ]


@NAMES
@pytest.mark.parametrize("way", WAYS)
@examples(5)
@given(data=st.data())
def test_debug_calls(name: str, way: str, data: st.DataObject) -> None:
    """Alone, or in a batch with a call of another length."""
    model = small_model(name)
    lengths = data.draw(st.sampled_from([(4,), (2, 5)]))
    calls = [
        [inference_sub_request(data.draw(debug_sub_requests(model.config, n_tokens)))] for n_tokens in lengths
    ]
    engine = engine_of(model, name, data.draw(st.sampled_from([None, TOP_K])))
    for one, other in answers_both_ways(engine, calls, WAYS[way]):
        assert_same_answers(one, other, 1e-12, Nodes.EQUAL)


def has_tokens(node: NodeIndex) -> bool:
    """Whether a node is at a token: keys and values are of the tokens attended to."""
    return node.node_type not in (NodeType.QK_CHANNEL, NodeType.V_CHANNEL)


@NAMES
@examples(40)
@given(
    scalars=st.lists(st.sampled_from(ranked_scalars(*SITES)), min_size=1, max_size=4, unique=True),
    ks=st.lists(st.sampled_from([1, 4, EVERY_NODE]), min_size=2, max_size=2),
    tokens=st.none() | st.tuples(st.integers(0, 3), st.integers(0, 1)),
    first_layer=st.sampled_from([None, 1, 2]),
    max_entries=st.sampled_from([1, 20, 150]),
    is_plain=st.booleans(),
    top_k=st.sampled_from([None, TOP_K]),
)
def test_any_ranking(
    name: str,
    scalars: Sequence[DerivedScalar],
    ks: Sequence[int],
    tokens: tuple[int, int] | None,
    first_layer: int | None,
    max_entries: int,
    is_plain: bool,
    top_k: int | None,
) -> None:
    """Of any derived scalars, at one token or at all, for rows of different lengths."""
    spec = MultipleTopKSpec(((GroupId.SINGLETON, tuple(scalars)),), 1, first_layer_index=first_layer)
    loss = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    calls = [
        [
            InferenceSubRequest(
                inference(prompt, loss),
                {
                    "nodes": replace(
                        spec, top_and_bottom_k=k, token_index=None if tokens is None else tokens[index]
                    )
                },
            )
        ]
        for index, (prompt, k) in enumerate(zip(((3, 9, 27, 41), (5, 8)), ks, strict=True))
    ]
    others = [in_parts_of(max_entries), *([ranks_plainly] if is_plain else [])]
    for index, (one, other) in enumerate(
        answers_both_ways(engine_of(small_model(name), name, top_k), calls, *others)
    ):
        assert_same_answers(one, other, 1e-12, Nodes.EQUAL)
        if tokens is not None:
            at_tokens = {node.tensor_indices[0] for node in one.top_k("nodes").nodes if has_tokens(node)}
            assert at_tokens <= {tokens[index]}

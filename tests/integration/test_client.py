"""The Python client and the command `tdb` against a real server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tdb_client import (
    Ablation,
    ActivationsSpec,
    AsyncClient,
    Client,
    DebugSubRequest,
    DerivedAttentionScalarsResult,
    DerivedAttentionScalarsSpec,
    EdgesSubRequest,
    FailedPreconditionError,
    Finished,
    InferenceSubRequest,
    InvalidRequestError,
    LensSpec,
    Loss,
    MultipleTopKResult,
    MultipleTopKSpec,
    Node,
    ScoredTokensSpec,
    Started,
    Trace,
    head,
    neuron,
)
from tdb_client.cli import main
from tdb_client.encoding import edges_request

from tests.random_models import FIXTURES

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " the", " of"
GOLDEN_LOSS = -7.702362  # of tests/golden/tiny-a/plain
AUTOENCODERS = FIXTURES / "tiny-a" / "autoencoders"


@pytest.fixture
def client(server):
    with Client(f"127.0.0.1:{server.port}") as one:
        yield one


def test_debug_gives_the_goldens_numbers_as_tables(client):
    result = client.debug(PROMPT, TARGET, DISTRACTOR, request_id="table")
    n_tokens = len(result.prompt)
    assert result.call.request_id == "table"
    assert "".join(result.prompt.tokens) == PROMPT
    assert result.loss == pytest.approx(GOLDEN_LOSS, abs=1e-3)
    assert result.traced_value is None
    assert len(set(result.nodes.nodes)) == len(result.nodes) > 50
    for name in ("write_norm", "act_times_grad", "direct_effect", "activation"):
        assert result.nodes.scalar(name).shape == (len(result.nodes),)
    assert result.token_attribution.shape == (n_tokens,)
    assert result.sums["activation"]["attn_qk_probs"].shape == (n_tokens, n_tokens)
    assert np.all(np.diff(result.logits.logits) <= 0)
    assert len(result.logits) == 100
    for row, node in enumerate(result.nodes.nodes):
        upvoted = result.nodes.upvoted_tokens[row]
        assert upvoted is not None
        assert len(upvoted.top.tokens) == 10
        assert (result.nodes.input_tokens[row] is not None) == (node.type == "mlp_neuron")
        assert (result.nodes.query_tokens[row] is not None) == (node.type == "attention_head")


def test_an_ablation_beside_the_run_without(client):
    plain = DebugSubRequest.of(PROMPT, TARGET, DISTRACTOR)
    ablated = DebugSubRequest.of(
        PROMPT, TARGET, DISTRACTOR, ablate=[head(1, 1, token=-1), "L2 neuron 3 @ 4 = 2.5"]
    )
    before, after = client.debug_many([plain, ablated])
    assert before.nodes.nodes == after.nodes.nodes
    assert before.loss == pytest.approx(GOLDEN_LOSS, abs=1e-3)
    assert after.loss != pytest.approx(before.loss, abs=0.1)
    last = len(before.prompt) - 1
    rows = [
        row
        for row, node in enumerate(before.nodes.nodes)
        if (node.type, node.layer, node.index, node.token) == ("attention_head", 1, 1, last)
    ]
    assert rows
    assert np.all(after.nodes.activation[rows] == 0)
    assert np.all(before.nodes.activation[rows] != 0)


def test_traces_of_every_kind(client):
    read = head(1, 1, token=-1, attended_to=2)
    for trace, downstream in [
        (neuron(2, 188, token=-1), None),
        *((Trace(read, through), None) for through in ("Q", "K", "QK", "V")),
        (Trace(read, "V"), neuron(2, 188, token=-1)),
        (Trace(read, "V"), "L2 head 0 @ -1 -> -1 through K"),
    ]:
        result = client.debug(PROMPT, TARGET, trace=trace, downstream=downstream)
        assert result.traced_value is not None
        needs_loss = isinstance(trace, Trace) and trace.through == "V" and downstream is None
        assert (result.loss is not None) == needs_loss


def test_chunked_tensors_are_the_same(client, start_server):
    chunking = start_server("--chunk-bytes", "1KiB")
    sub_request = InferenceSubRequest(
        PROMPT, results={"pairs": DerivedAttentionScalarsSpec("attn_qk_probs", layer=1, head=1)}
    )
    with Client(f"127.0.0.1:{chunking.port}") as other:
        chunked, whole = other.infer([sub_request])[0], client.infer([sub_request])[0]
        debugged = other.debug(PROMPT, TARGET, DISTRACTOR)
    first, second = chunked.results["pairs"], whole.results["pairs"]
    assert isinstance(first, DerivedAttentionScalarsResult)
    assert isinstance(second, DerivedAttentionScalarsResult)
    assert first.scalars.nbytes > 1024
    np.testing.assert_array_equal(first.scalars, second.scalars)
    np.testing.assert_allclose(first.totals_in.total, 1, rtol=1e-5)
    assert debugged.loss == pytest.approx(GOLDEN_LOSS, abs=1e-3)


def test_general_requests_by_name(client):
    sub_request = InferenceSubRequest(
        PROMPT,
        loss=Loss("probs", (TARGET,)),
        results={
            "tokens": ScoredTokensSpec("top", n_tokens=3),
            "top": MultipleTopKSpec({"act_times_grad": ["mlp_act_times_grad"]}, k=4, token=-1),
        },
    )
    result = client.infer([sub_request])[0]
    assert list(result.results) == ["tokens", "top"] or set(result.results) == {"tokens", "top"}
    top = result.results["top"]
    assert isinstance(top, MultipleTopKResult)
    assert len(top.nodes) == 8
    assert {node.token for node in top.nodes} == {len(result.prompt) - 1}
    assert 0 < result.loss < 1


def test_edges_in_every_form(client, server, tmp_path, capsys):
    other = "When John and Mary went to the store, John gave a drink to"
    asked = EdgesSubRequest.of(
        PROMPT, TARGET, DISTRACTOR, baseline=other, method="eap_ig", steps=3, k=30, matrix=True
    )
    (edges,) = client.edges_many([asked])
    assert edges.loss == pytest.approx(GOLDEN_LOSS, abs=1e-3)
    assert edges.result.scores.shape == (1 + 3 * 5, 3 * 13 + 1)
    pairs = edges.result.edge_writers, edges.result.edge_readers
    np.testing.assert_array_equal(edges.result.scores[pairs], edges.result.edge_scores)
    assert np.count_nonzero(edges.result.scores[:, -1]) == 15  # the embedding of the last token is the same
    unary = server.debugger.InferEdges(edges_request([asked])).sub_responses[0]
    assert [one.name for one in unary.results] == ["edges"]
    assert list(unary.results[0].edges.edge_scores) == edges.result.edge_scores.tolist()
    assert client.estimate([asked]).response_bytes > edges.result.scores.nbytes
    words = ["--server", f"127.0.0.1:{server.port}", "--prompt", PROMPT, "--baseline", other]
    words += [
        "--target",
        TARGET,
        "--distractor",
        DISTRACTOR,
        "--method",
        "eap_ig",
        "--steps",
        "3",
        "-k",
        "30",
    ]
    files = tmp_path / "mib.json", tmp_path / "graph.json"
    assert main(["edges", *words, "--mib", str(files[0]), "--graph", str(files[1])]) == 0
    mib, graph = (json.loads(one.read_text()) for one in files)
    assert mib["edges"]["a0.h1->logits"]["score"] == pytest.approx(edges.result.scores[2, -1])
    assert {one["source"] for one in graph["links"]} <= {one["node_id"] for one in graph["nodes"]}
    capsys.readouterr()
    assert main(["edges", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["score"] for one in told["edges"]] == edges.result.edge_scores.tolist()
    assert main(["edges", *words, "--rows", "3"]) == 0
    assert "3 of 30 listed edges" in capsys.readouterr().out
    with pytest.raises(InvalidRequestError, match="baseline_prompts"):
        client.edges(PROMPT, TARGET, baseline=())


def test_totals_by_component_are_always_there_and_lists_may_be_left_out(client):
    result = client.debug(PROMPT, TARGET, DISTRACTOR, token_lists=False)
    by_layer = result.totals["unflattened_attn_write_to_final_residual_grad"].sum(axis=1)
    summed = result.sums["direction_write"]["unflattened_attn_write_to_final_residual_grad"]
    assert by_layer.sum() == pytest.approx(summed.sum(), abs=1e-4)
    assert len(result.components) == 1 + len(by_layer) * (
        1 + result.totals["unflattened_attn_write_norm"].shape[1]
    )
    assert set(result.nodes.upvoted_tokens) == {None}


def test_a_hundred_ablations_lenses_and_places_in_one_call(client):
    n_tokens = len(client.tokenize(PROMPT))
    loss = Loss("log_prob", TARGET, token=n_tokens - 2)
    ablated = [
        InferenceSubRequest.of(PROMPT, loss, ablate=head(layer, index, token=token))
        for layer in range(3) for index in range(3) for token in range(11)
    ]  # fmt: skip
    at = (-1, 0)
    wanted = {
        "lens": LensSpec(TARGET, 3, at=at),
        "probs": ActivationsSpec("attn_qk_probs", at=at),
        "slopes": ActivationsSpec("mlp_post_act", layers=[2], pass_type="backward"),
    }
    plain = client.infer([InferenceSubRequest(PROMPT, loss, results=wanted)])[0]
    results = client.infer([*ablated, InferenceSubRequest(PROMPT, loss)])
    assert len(results) == 100
    assert results[-1].loss == pytest.approx(plain.loss, abs=1e-5)
    assert len({one.loss for one in results}) > 50
    lens, probs, slopes = (plain.results[name] for name in wanted)
    assert lens.at == probs.at == (n_tokens - 1, 0)
    assert lens.logits.shape == (4, 2, 1)
    assert [len(row) for row in lens.top_tokens] == [2] * 4
    assert {layer: one.array.shape for layer, one in probs.layers.items()} == dict.fromkeys(
        range(3), (2, n_tokens, 4)
    )
    np.testing.assert_allclose(probs.layers[0].array.sum(axis=1), 1, atol=1e-5)
    assert np.abs(slopes.layers[2].array[-2]).max() > 0
    assert not slopes.layers[2].array[-1].any(), "the loss sees nothing after its token"


def test_the_model_and_its_tokens(client):
    model = client.model_info()
    assert (model.name, model.n_layers, model.d_model) == ("tiny-a", 3, 48)
    assert "mlp_act_times_grad" in model.derived_scalars
    assert "attn_qk_probs" in model.ablatable_hook_points
    tokens = client.tokenize(PROMPT)
    assert client.detokenize(tokens.token_ids) == PROMPT
    assert client.health() == "SERVING"
    assert client.health("transformer_debugger.v1.ModelService") == "SERVING"
    assert client.estimate([DebugSubRequest(PROMPT, (TARGET,))]).activation_bytes > 0
    assert client.estimate([InferenceSubRequest(PROMPT)]).response_bytes >= 0


def test_refusals_name_the_fields(client):
    with pytest.raises(InvalidRequestError) as refused:
        client.debug(PROMPT, [TARGET, " Mary"], k=0)
    assert refused.value.reason in ("NOT_ONE_TOKEN", "OUT_OF_RANGE")
    paths = {one.path for one in refused.value.field_violations}
    assert paths == {"sub_requests[0].target_tokens[1]", "sub_requests[0].top_and_bottom_k"}
    with pytest.raises(FailedPreconditionError, match="component_type_for_mlp") as missing:
        client.debug(PROMPT, TARGET, mlp="autoencoder_latent")
    assert missing.value.reason == "AUTOENCODER_NOT_LOADED"


def test_latents_as_components(start_server):
    server = start_server(
        "--autoencoder",
        str(AUTOENCODERS / "mlp_post_act"),
        "--autoencoder",
        str(AUTOENCODERS / "resid_delta_attn"),
    )
    with Client(f"127.0.0.1:{server.port}") as client:
        result = client.debug(
            PROMPT, TARGET, DISTRACTOR, mlp="autoencoder_latent", attention="autoencoder_latent"
        )
        latents = [node for node in result.nodes.nodes if node.type == "attention_autoencoder_latent"]
        assert latents
        assert any(one is not None for one in result.nodes.attended_to)
        of_mlp = next(node for node in result.nodes.nodes if node.type == "mlp_autoencoder_latent")
        ablations = [latents[0], Ablation(of_mlp, 1.5)]
        effects = client.ablate_each(PROMPT, TARGET, DISTRACTOR, ablations)
        for one, loss in zip(ablations, effects.ablated, strict=True):
            assert client.debug(PROMPT, TARGET, DISTRACTOR, ablate=one).loss == pytest.approx(loss, abs=1e-5)
        traced = client.debug(PROMPT, TARGET, trace=latents[0], mlp="autoencoder_latent")
        assert traced.traced_value is not None
        assert {one.site for one in client.model_info().autoencoders} == {"mlp_post_act", "resid_delta_attn"}


async def test_asyncio_gives_the_same(server, client):
    async with AsyncClient(f"127.0.0.1:{server.port}") as other:
        requests = [other.debug(PROMPT, TARGET, DISTRACTOR, ablate=["L1 head 1 @ -1"]) for _ in range(3)]
        results = await asyncio.gather(*requests)
        events = [event async for event in other.stream_debug([DebugSubRequest(PROMPT, (TARGET,))])]
    same = client.debug(PROMPT, TARGET, DISTRACTOR, ablate=["L1 head 1 @ -1"])
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    for result in results:
        assert result.nodes.nodes == same.nodes.nodes
        np.testing.assert_allclose(result.nodes.direct_effect, same.nodes.direct_effect, atol=1e-4)


def test_a_closed_stream_leaves_the_server_free(client):
    with closing(client.stream_debug([DebugSubRequest(PROMPT, (TARGET,))] * 8)) as events:
        next(events)
    assert client.debug(PROMPT, TARGET, DISTRACTOR).loss == pytest.approx(GOLDEN_LOSS, abs=1e-3)


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_command_explains(server, capsys, monkeypatch, columns):
    monkeypatch.setenv("TDB_SERVER", f"127.0.0.1:{server.port}")
    monkeypatch.setenv("COLUMNS", columns)
    debug = ["debug", "--prompt", PROMPT, "--target", TARGET, "--distractor", DISTRACTOR]
    assert main(debug) == 0
    assert "logit ' the' - ' of' = -7.702" in capsys.readouterr().out
    assert main([*debug, "--ablate", "L1 head 1 @ -1"]) == 0
    assert main([*debug, "--ablate", "L1 head 1 @ -1", "--hide-early-layers"]) == 0
    assert "-7.702 plain, -3.5" in capsys.readouterr().out
    assert main(["trace", "L1 head 1 @ -1 -> 2", "--type", "QK", "--prompt", PROMPT]) == 0
    assert "L1 head 1, ' to' → ' M', through QK = " in capsys.readouterr().out
    assert main([*debug, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sub_requests"][0]["result"]["loss"] == pytest.approx(
        GOLDEN_LOSS
    )


def test_the_whole_attention_agrees_with_the_nodes(start_server):
    """Of the plain run and of one with ablations of each kind, counted from the end as well."""
    server = start_server("--autoencoder", str(FIXTURES / "tiny-a" / "autoencoders" / "mlp_post_act"))
    ablate = ["L0 head 1 @ -1", "L1 neuron 5 @ -2 = 3.0", "L0 mlp latent 2 @ 1 = 0.5"]
    words = {"prompt": PROMPT, "target": TARGET, "k": 30, "mlp": "autoencoder_latent"}
    requests = [DebugSubRequest.of(**words), DebugSubRequest.of(**words, ablate=ablate)]
    with Client(f"127.0.0.1:{server.port}") as client:
        results = client.with_attention(client.debug_many(requests), n_heads=5)
        assert client.with_attention([]) == []
    for result in results:
        assert len(result.attention) == 5
        n_compared = 0
        for node, activation in zip(result.nodes.nodes, result.nodes.activation, strict=True):
            if (pattern := result.attention.get(node.component)) is not None:
                assert pattern[node.token, node.attended_to] == pytest.approx(activation, abs=1e-6)
                n_compared += 1
        assert n_compared > 5
    assert any(
        not np.allclose(results[0].attention[head], results[1].attention[head])
        for head in results[0].attention
    )


def test_nodes_are_spelled_alike_everywhere(server, client, capsys, tmp_path):
    """In tables for programs, in frames and in pages; and what is printed can be asked about."""
    command = ["debug", "--prompt", PROMPT, "--target", TARGET, "--server", f"127.0.0.1:{server.port}"]
    nodes = client.debug(PROMPT, TARGET).nodes.nodes
    assert main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert main([*command, "--json", "--html", str(tmp_path / "report.html")]) == 0
    printed = json.loads(capsys.readouterr().out)["sub_requests"][0]["result"]["nodes"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    for spelled in (
        [row["node"] for row in rows],
        [row["node"] for row in printed],
        [node["spelling"] for node in data["nodes"]],
        list(client.debug(PROMPT, TARGET).to_frame()["node"]),
    ):
        assert tuple(Node.parse(one) for one in spelled) == nodes
    for node in nodes:
        if node.type == "mlp_neuron":
            assert client.debug(PROMPT, TARGET, ablate=str(node)).request.ablate == (Ablation(node),)
            assert client.debug(PROMPT, trace=str(node)).traced_value is not None
            break


def test_the_doctor_finds_a_server_well(server, capsys):
    assert main(["doctor", "--server", f"127.0.0.1:{server.port}"]) == 0
    out = capsys.readouterr().out
    assert "interface v1" in out
    assert "tiny-a: gpt2, 3 layers" in out
    assert out.endswith("All is well.\n")


def test_the_command_says_in_one_line_what_is_wrong(server, capsys):
    code = main(["debug", "--server", f"127.0.0.1:{server.port}", "--prompt", PROMPT, "--target", " Mary"])
    assert code == 1
    assert (
        capsys.readouterr().err == "tdb: --target ' Mary': must be one token, and ' Mary' is 2:"
        " ' M' (337), 'ary' (560)\n"
    )


def test_the_library_example_runs(server, monkeypatch, capsys):
    """On the tiny model, whose tokens and layers differ."""
    source = (Path(__file__).parents[2] / "examples" / "first_request.py").read_text()
    for ours, tiny in (
        ("127.0.0.1:50051", f"127.0.0.1:{server.port}"),
        ('" Mary", " John"', f'"{TARGET}", "{DISTRACTOR}"'),
        ("head(23, 1, token=-1)", "head(1, 1, token=-1)"),
    ):
        assert ours in source
        source = source.replace(ours, tiny)
    exec(compile(source, "first_request.py", "exec"), {})
    assert "without L1 head 1 @ -1: -3.5" in capsys.readouterr().out

"""Edges as the client answers them, and as files for other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tdb_client import (
    AsyncClient,
    CallInfo,
    Client,
    Edges,
    EdgesSubRequest,
    InvalidValueError,
    Loss,
    LossTokens,
    PromptTokens,
)
from tdb_client.requests import tokens_from_start
from tdb_client.results import EdgeReader, EdgesResult, EdgeWriter

from tests.unit.client.fake_service import FakeService


def found(n_keys: int, *, matrix: bool = True, is_parallel: bool = False) -> Edges:
    """Two layers of two heads, which share a key and a value or do not; every score is another one."""
    layers, heads = range(2), range(2)
    writers, readers, before = [EdgeWriter("embedding")], [], []
    for layer in layers:
        kinds = (("head_query", 2), ("head_key", n_keys), ("head_value", n_keys))
        own = [EdgeReader(kind, layer, head) for kind, n in kinds for head in range(n)]
        readers += [*own, EdgeReader("mlp", layer)]
        before += [len(writers)] * len(own) + [len(writers) + (0 if is_parallel else 2)]
        writers += [*(EdgeWriter("head", layer, head) for head in heads), EdgeWriter("mlp", layer)]
    readers.append(EdgeReader("logits"))
    before.append(len(writers))
    scores = 1.0 + np.arange(len(writers) * len(readers)).reshape(len(writers), len(readers))
    scores[np.arange(len(writers))[:, None] >= np.array(before)] = 0
    i, j = np.unravel_index(np.argsort(-scores, axis=None)[: np.count_nonzero(scores)], scores.shape)
    result = EdgesResult(
        tuple(writers), tuple(readers), tuple(before), i, j, scores[i, j], scores if matrix else None
    )
    return Edges(
        EdgesSubRequest.of("a b", " c", " d", baseline="a e"),
        CallInfo("1", "small", "00"),
        PromptTokens((1, 2), ("a", " b")),
        0.5,
        LossTokens((3,), (" c",), (4,), (" d",)),
        result,
        d_model=16,
    )


def test_the_answer_is_read(fake: tuple[str, FakeService]) -> None:
    with Client(fake[0]) as client:
        edges = client.edges("p", " Mary", " John", baseline="q", k=3, add_bos=True)
        assert client.estimate([edges.request]).activation_bytes == 77
    asked = next(one for one in fake[1].requests if one.DESCRIPTOR.name == "InferEdgesRequest").sub_requests[
        0
    ]
    assert (asked.prompt, asked.baseline_prompts, asked.top_k, asked.add_bos) == ("p", ["q"], 3, True)
    assert not asked.HasField("steps")
    assert [(str(one), one.score) for one in edges] == [
        ("L0 head 0 -> logits", -2.5),
        ("embedding -> L0 key head 0", 0.5),
    ]
    assert edges.loss == 1.5
    assert list(edges.to_frame()["reader"]) == ["logits", "head_key"]


async def test_another_loss_takes_the_place_of_the_tokens(fake: tuple[str, FakeService]) -> None:
    loss = Loss("log_prob", " Mary", token=1)
    with Client(fake[0]) as client:
        edges = client.edges("p", loss=loss, baseline="q")
        with pytest.raises(InvalidValueError, match=r"^loss: takes the place of target and distractor"):
            client.edges("p", distractor=" John", loss=loss, baseline="q")
    async with AsyncClient(fake[0]) as other:
        same = await other.edges("p", loss=loss, baseline="q")
    for one in (edges, same):
        assert (one.request.loss, one.objective) == (loss, "log-probability ' Mary' @ 1")
        assert list(tokens_from_start(one.request)) == [1]
    assert not list(tokens_from_start(replace(edges.request, loss=Loss("probs", " Mary", token=-1))))


@pytest.mark.parametrize(("n_keys", "is_parallel"), [(2, False), (1, False), (2, True)])
def test_mib_reads_every_edge_under_its_name(tmp_path: Path, n_keys: int, is_parallel: bool) -> None:
    edges = found(n_keys, is_parallel=is_parallel)
    edges.to_mib_json(tmp_path / "mib.json")
    told = json.loads((tmp_path / "mib.json").read_text())
    assert told["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": is_parallel, "d_model": 16}
    assert list(told["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    of_layer = {0: ["input"], 1: ["input", "a0.h0", "a0.h1", "m0"]}
    expected = {
        f"{writer}->a{layer}.h{head}<{letter}>"
        for layer, writers in of_layer.items()
        for writer in writers
        for head in range(2)
        for letter in "qkv"
    }
    for layer, writers in of_layer.items():
        own = [] if is_parallel else [f"a{layer}.h0", f"a{layer}.h1"]
        expected |= {f"{writer}->m{layer}" for writer in [*writers, *own]}
    expected |= {f"{writer}->logits" for writer in told["nodes"] if writer != "logits"}
    assert told["edges"].keys() == expected
    assert edges.result.scores is not None
    readers = [str(one) for one in edges.result.readers]
    shared = edges.result.scores[1, readers.index(f"L1 value head {n_keys - 1}")]
    assert told["edges"]["a0.h0->a1.h1<v>"] == {"score": shared, "in_graph": True}
    assert all(one["in_graph"] for one in told["nodes"].values())


def test_mib_needs_the_matrix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matrix=True"):
        found(2, matrix=False).to_mib_json(tmp_path / "mib.json")


def test_a_graph_says_what_is_measured(tmp_path: Path) -> None:
    """Not a sum of tokens, where it is the mean of their log-probabilities."""
    request = EdgesSubRequest("a b", Loss("log_prob", (" c", " d")), ("a e",))
    replace(found(2), request=request).to_attribution_graph(tmp_path / "graph.json")
    nodes = json.loads((tmp_path / "graph.json").read_text())["nodes"]
    assert [one["clerp"] for one in nodes if one["is_target_logit"]] == ["log-probability ' c', ' d'"]


def test_a_graph_has_a_link_between_two_nodes_once(tmp_path: Path) -> None:
    edges = found(2, matrix=False)
    edges.to_attribution_graph(tmp_path / "graph.json", slug="mine")
    told = json.loads((tmp_path / "graph.json").read_text())
    assert told["metadata"]["slug"] == "mine"
    assert told["metadata"]["prompt_tokens"] == ["a", " b"]
    nodes = {one["node_id"]: one for one in told["nodes"]}
    assert len(nodes) == len(told["nodes"]) == 8
    assert {one["ctx_idx"] for one in nodes.values()} == {1}
    assert [one["clerp"] for one in nodes.values() if one["is_target_logit"]] == ["logit ' c' - ' d'"]
    links = {(one["source"], one["target"]): one["weight"] for one in told["links"]}
    assert len(links) == len(told["links"])
    assert {one for pair in links for one in pair} == set(nodes)
    assert sum(links.values()) == pytest.approx(edges.result.edge_scores.sum())
    of_head = [
        one.score for one in edges if (one.writer.type, one.reader.component) == ("embedding", "L1 head 1")
    ]
    assert len(of_head) == 3
    assert links["E_0_1", "1_1_1"] == pytest.approx(sum(of_head))


def test_a_shared_key_is_a_node_of_its_own(tmp_path: Path) -> None:
    found(1).to_attribution_graph(tmp_path / "graph.json")
    told = json.loads((tmp_path / "graph.json").read_text())
    kinds = {one["node_id"]: one["feature_type"] for one in told["nodes"]}
    assert kinds["1_0k_1"] == "head_key"
    assert kinds["1_0_1"] == "attention head"
    weights = {(one["source"], one["target"]) for one in told["links"]}
    assert ("0_1_1", "1_0k_1") in weights

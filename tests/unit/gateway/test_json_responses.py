"""Results become the reference's bodies: keys, nulls and numbers as in the goldens."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.edges import EdgeShape, EdgesResult
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType
from tdb_server.domain.results import (
    ActivationsResult,
    AttentionTotals,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    GroupResult,
    LabelledArray,
    LensResult,
    MultipleTopKResult,
    NamedResult,
    ProcessingResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.gateway.json_responses import batched_response, model_info_response, single_response
from tdb_server.gateway.json_text import json_pieces
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.result_messages import put_named_result
from transformer_debugger.v1 import result_pb2
from transformer_debugger.v1.model_service_pb2 import AutoencoderInfo, ModelInfo
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse, InferResponse

TESTS = Path(__file__).parents[2]
GOLDENS = sorted((TESTS / "golden").glob("*/*.json.gz"))
TOKENIZER = Tokenizer(TESTS / "fixtures" / "tiny-a")
IDS_BY_TEXT: dict[str, int] = {}
for token_id, text in enumerate(TOKENIZER.token_strings(range(TOKENIZER.vocabulary_size))):
    IDS_BY_TEXT.setdefault(text, token_id)
AXES = {
    1: (Dimension.SEQUENCE_TOKENS,),
    2: (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS),
}


def parsed_node(body: dict[str, Any], n_tokens: int) -> NodeIndex:
    indices = [one + n_tokens if one < 0 else one for one in body["tensorIndices"]]
    return NodeIndex(
        NodeType(body["nodeType"]), body["layerIndex"], tuple(indices), PassType(body["passType"])
    )


def parsed_tokens(lists: list[dict[str, Any]]) -> TopTokens:
    columns = []
    for side in ("top", "bottom"):
        columns.append(np.array([[IDS_BY_TEXT[one["token"]] for one in lst[side]] for lst in lists]))
        columns += [
            np.array([[one[key] for one in lst[side]] for lst in lists])
            for key in ("scalar", "normalizedScalar")
        ]
    return TopTokens(*columns)


def rows_of(values: list[Any]) -> np.ndarray[Any, Any]:
    present = np.array([one is not None for one in values])
    return np.where(present, np.cumsum(present) - 1, -1)


def parsed_result(body: dict[str, Any], n_tokens: int) -> ProcessingResult:
    """The result that a golden body must have come from."""
    if "tokenAndAttentionScalarsList" in body:
        return parsed_attention_scalars(body["tokenAndAttentionScalarsList"])
    nodes = tuple(parsed_node(one, n_tokens) for one in body["nodeIndices"])
    if "activationsByGroupId" in body:
        sums = body["intermediateSumActivationsByDstByGroupId"]
        groups = {
            GroupId(group): GroupResult(
                np.array(values),
                {
                    DerivedScalar(scalar): LabelledArray(
                        np.array(one["value"]), AXES[int(one["tensorType"][7])]
                    )
                    for scalar, one in sums[group].items()
                },
            )
            for group, values in body["activationsByGroupId"].items()
        }
        return MultipleTopKResult(nodes, groups)
    if "topTokensList" in body:
        lists = body["topTokensList"]
        return ScoredTokensResult(
            nodes, rows_of(lists), parsed_tokens([one for one in lists if one is not None])
        )
    if "topTokensAttendedToList" in body:
        lists = body["topTokensAttendedToList"]
        present = [one for one in lists if one is not None]
        indices = np.array([one["tokenIndices"] for one in present], dtype=np.int64)
        attributions = np.array([one["attributions"] for one in present])
        return TokenPairAttributionResult(nodes, rows_of(lists), indices, attributions)
    top_tokens = body["topTokens"]
    return DerivedScalarsResult(
        nodes,
        np.array(body["activations"]),
        top_tokens=None if top_tokens is None else parsed_tokens([top_tokens]),
    )


def parsed_attention_scalars(rows: list[dict[str, Any]]) -> DerivedAttentionScalarsResult:
    def square(key: str) -> np.ndarray[Any, Any]:
        return np.array([row[key] + [0.0] * (len(rows) - len(row[key])) for row in rows])

    def totals(direction: str) -> AttentionTotals:
        keys = ("totalScalar", "normalizedTotalScalar", "maxScalar", "normalizedMaxScalar")
        return AttentionTotals(*(np.array([row[key + direction] for row in rows]) for key in keys))

    return DerivedAttentionScalarsResult(
        square("scalars"), square("normalizedScalars"), totals("In"), totals("Out")
    )


def answered(golden: dict[str, Any]) -> dict[str, Any]:
    """The golden's response, taken apart into results and put together again."""
    response = InferResponse()
    body = golden["response"]
    is_batch = "inferenceSubResponses" in body
    for one in body["inferenceSubResponses"] if is_batch else [body]:
        inference = (one["inferenceResponse"] if is_batch else one)["inferenceAndTokenData"]
        token_ids = inference["tokensAsInts"]
        sub_response = response.sub_responses.add(
            token_ids=token_ids,
            token_strings=TOKENIZER.token_strings(token_ids),
            loss=inference["loss"],
            activation_value_for_backward_pass=inference["activationValueForBackwardPass"],
        )
        named = (
            one["processingResponseDataByName"]
            if is_batch
            else {key: value for key, value in one.items() if key.endswith("ResponseData")}
        )
        for name, data in named.items():
            result = NamedResult(0, name, parsed_result(data, len(token_ids)))
            put_named_result(sub_response.results.add(), result, TOKENIZER, token_ids)
    body = batched_response(response) if is_batch else single_response(response)
    return json.loads(b"".join(json_pieces(body)))


def assert_same(found: Any, wanted: Any, path: str = "") -> None:
    """The same keys, types and values; numbers as 32 bit floats; token indices absolute."""
    if isinstance(wanted, dict):
        assert not wanted.keys() - found.keys(), path
        assert found.keys() - wanted.keys() <= {
            "responseDataType",
            "inferenceTime",
            "memoryUsedBefore",
            "memoryUsedAfter",
            "log",
        }, path
        for key, value in wanted.items():
            if key == "tensorIndices" and value[0] == -1:
                continue
            assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for i, value in enumerate(wanted):
            assert_same(found[i], value, f"{path}[{i}]")
    elif isinstance(wanted, float):
        assert isinstance(found, float), path
        assert abs(found - wanted) <= 1e-6 * abs(wanted) + 1e-12, path
    else:
        assert type(found) is type(wanted), path
        assert found == wanted, path


@pytest.mark.parametrize(
    "path",
    [path for path in GOLDENS if path.stat().st_size < 80_000],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_golden_bodies(path: Path) -> None:
    golden = json.loads(gzip.decompress(path.read_bytes()))
    assert_same(answered(golden), without_misread_nodes(golden["response"]))


def without_misread_nodes(body: Any) -> Any:
    """The body less nodes `(token, head)` that its readers would take for masked attention cells."""
    if isinstance(body, list):
        return [without_misread_nodes(one) for one in body]
    if not isinstance(body, dict):
        return body
    if "activationsByGroupId" not in body:
        return {key: without_misread_nodes(value) for key, value in body.items()}
    shown = [
        i
        for i, node in enumerate(body["nodeIndices"])
        if len(node["tensorIndices"]) != 2
        or node["nodeType"] != "attention_head"
        or node["tensorIndices"][1] <= node["tensorIndices"][0]
    ]
    activations = {
        group: [values[i] for i in shown] for group, values in body["activationsByGroupId"].items()
    }
    nodes = [body["nodeIndices"][i] for i in shown]
    return {**body, "activationsByGroupId": activations, "nodeIndices": nodes}


def one_result(result: ProcessingResult) -> dict[str, Any]:
    response = InferResponse()
    sub_response = response.sub_responses.add(token_ids=[464, 269])
    put_named_result(sub_response.results.add(), NamedResult(0, "x", result), TOKENIZER, [464, 269])
    body = json.loads(b"".join(json_pieces(batched_response(response))))
    found: dict[str, Any] = body["inferenceSubResponses"][0]["processingResponseDataByName"]["x"]
    return found


def test_numbers_that_are_not_finite() -> None:
    node = NodeIndex(NodeType.MLP_NEURON, 0, (0, 1))
    sums = {
        DerivedScalar.MLP_POST_ACT: LabelledArray(np.array([math.inf, 1.0]), AXES[1]),
        DerivedScalar.ATTN_QK_LOGITS: LabelledArray(np.array([[1.0, -math.inf], [math.nan, 2.0]]), AXES[2]),
        DerivedScalar.LOGITS: LabelledArray(np.array(-math.inf), ()),
    }
    groups = {GroupId.SINGLETON: GroupResult(np.array([math.nan]), sums)}
    body = one_result(MultipleTopKResult((node,), groups))
    assert body["activationsByGroupId"] == {"singleton": [-999.0]}
    found = body["intermediateSumActivationsByDstByGroupId"]["singleton"]
    assert found["mlp_post_act"] == {"tensorType": "tensor_1d", "value": [-999.0, 1.0]}
    assert found["attn_qk_logits"]["value"][0] == [1.0, -math.inf]
    assert json.dumps(found["attn_qk_logits"]["value"][1]) == "[NaN, 2.0]"
    assert found["logits"] == {"tensorType": "tensor_0d", "value": -math.inf}


def test_normalized_activations() -> None:
    nodes = tuple(NodeIndex(NodeType.MLP_NEURON, 0, (t, 1)) for t in range(2))
    body = one_result(DerivedScalarsResult(nodes, np.array([1.0, 2.0]), np.array([0.5, 1.0])))
    assert body["normalizedActivations"] == [0.5, 1.0]
    assert body["topTokens"] is None


def test_lists_about_nodes_leave_out_what_their_ranking_leaves_out() -> None:
    """`(token, head)` with a head beyond the token looks like a masked cell to clients."""
    nodes = tuple(NodeIndex(NodeType.ATTENTION_HEAD, 0, indices) for indices in ((0, 0), (0, 1), (1, 1)))
    ranked = MultipleTopKResult(nodes, {GroupId.SINGLETON: GroupResult(np.array([3.0, 2.0, 1.0]), {})})
    columns = [np.array([[7], [8], [9]]), np.array([[0.5], [0.6], [0.7]]), np.array([[1.0], [1.0], [1.0]])]
    scored = ScoredTokensResult(nodes, np.arange(3), TopTokens(*columns, *columns))
    pairs = TokenPairAttributionResult(nodes, np.arange(3), np.array([[4], [5], [6]]), np.ones((3, 1)))
    of_ranking, of_tokens, of_pairs = (one_result(one) for one in (ranked, scored, pairs))
    assert [one["tensorIndices"] for one in of_ranking["nodeIndices"]] == [[0, 0], [1, 1]]
    assert of_ranking["activationsByGroupId"] == {"singleton": [3.0, 1.0]}
    assert of_tokens["nodeIndices"] == of_pairs["nodeIndices"] == of_ranking["nodeIndices"]
    assert [one["top"][0]["scalar"] for one in of_tokens["topTokensList"]] == pytest.approx([0.5, 0.7])
    assert [one["tokenIndices"] for one in of_pairs["topTokensAttendedToList"]] == [[4], [6]]


def lens_result() -> LensResult:
    logits = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    logits[1, 0, 1] = math.inf
    ids = np.arange(6)[:, None] + np.array([100, 200])
    return LensResult((0, 4), (1, 3), (7, 8), logits, ids, ids / 2)


def test_a_lens() -> None:
    lens = lens_result()
    body = one_result(lens)
    assert (body["layerIndices"], body["tokenIndices"]) == ([0, 4], [1, 3])
    assert (body["vocabTokens"], body["vocabTokenIds"]) == (TOKENIZER.token_strings([7, 8]), [7, 8])
    assert body["logits"] == [[[0, 1], [2, 3]], [[4, None], [6, 7]], [[8, 9], [10, 11]]]
    assert [len(row) for row in body["topTokens"]] == [2, 2, 2]
    text = TOKENIZER.token_strings([105])[0]
    assert body["topTokens"][2][1][0] == {"token": text, "tokenId": 105, "logit": 52.5}
    body = one_result(replace(lens, vocabulary_tokens=(), logits=np.zeros((3, 2, 0))))
    assert (body["logits"], body["vocabTokens"]) == (None, [])
    nothing = np.zeros((6, 0))
    assert one_result(replace(lens, top_ids=nothing, top_logits=nothing))["topTokens"] is None


def place_result() -> ActivationsResult:
    axes = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS, Dimension.ATTN_HEADS)
    logits = LabelledArray(np.array([[[0.5], [-math.inf]], [[1.5], [math.nan]]], np.float32), axes)
    scale = LabelledArray(np.array([2.0, math.inf], np.float32), AXES[1])
    return ActivationsResult(((3, logits), (None, scale)), (0, 2))


def test_places_as_they_are() -> None:
    assert one_result(place_result()) == {
        "responseDataType": "activations_response_data",
        "tokenIndices": [0, 2],
        "layers": [
            {
                "layerIndex": 3,
                "dimensions": ["sequence_tokens", "attended_to_sequence_tokens", "attn_heads"],
                "activations": [[[0.5], [None]], [[1.5], [None]]],
            },
            {"layerIndex": None, "dimensions": ["sequence_tokens"], "activations": [2.0, None]},
        ],
    }


def edges_result() -> EdgesResult:
    shape = EdgeShape(n_layers=1, n_heads=2, n_key_value_heads=1, is_parallel=False)
    listed = np.array([3, 0]), np.array([5, 1]), np.array([-1.5, math.nan])
    return EdgesResult(shape.writers(), shape.readers(), shape.writers_before(), *listed, np.ones((4, 6)))


def test_edges() -> None:
    body = one_result(edges_result())
    assert body["writers"][0] == {"writerType": "embedding", "layerIndex": None, "headIndex": None}
    assert body["writers"][2] == {"writerType": "head", "layerIndex": 0, "headIndex": 1}
    assert body["readers"][3] == {"readerType": "head_value", "layerIndex": 0, "headIndex": 0}
    assert body["readers"][5] == {"readerType": "logits", "layerIndex": None, "headIndex": None}
    assert body["writersBefore"] == [1, 1, 1, 1, 3, 4]
    assert body["edges"] == [
        {"writer": 3, "reader": 5, "score": -1.5},
        {"writer": 0, "reader": 1, "score": None},
    ]
    assert body["scores"] == [[1.0] * 6] * 4
    assert one_result(replace(edges_result(), scores=None))["scores"] is None


def test_baselines_and_circuits_are_told_to_those_who_ask() -> None:
    plain = result_pb2.SubResponse(token_ids=[1], token_strings=["a"])
    compared = result_pb2.SubResponse(token_ids=[1], token_strings=["a"])
    compared.baselines.add(token_ids=[2], token_strings=["b"])
    compared.circuit.objective, compared.circuit.objective_of_prompt = 0.5, 2.0
    bodies = [
        one["inferenceResponse"]["inferenceAndTokenData"]
        for one in batched_response(DebugResponse(sub_responses=[plain, compared]))["inferenceSubResponses"]
    ]
    assert bodies[1].keys() - bodies[0].keys() == {"baselines", "circuit"}
    assert bodies[1]["baselines"] == [{"tokensAsInts": [2], "tokensAsStrings": ["b"]}]
    assert bodies[1]["circuit"] == {
        "objective": 0.5,
        "objectiveOfPrompt": 2.0,
        "objectiveOfBaseline": 0.0,
        "faithfulness": None,
    }
    compared.circuit.faithfulness = 0.25
    (answer,) = batched_response(DebugResponse(sub_responses=[compared]))["inferenceSubResponses"]
    assert answer["inferenceResponse"]["inferenceAndTokenData"]["circuit"]["faithfulness"] == 0.25


def test_model_info() -> None:
    info = ModelInfo(name="tiny", n_layers=3)
    assert model_info_response(info) == {
        "modelName": "tiny",
        "hasMlpAutoencoder": False,
        "mlpAutoencoderName": None,
        "hasAttentionAutoencoder": False,
        "attentionAutoencoderName": None,
        "nLayers": 3,
    }
    info.autoencoders.extend([AutoencoderInfo(site=1), AutoencoderInfo(site=3)])
    body = model_info_response(info)
    assert (body["hasMlpAutoencoder"], body["mlpAutoencoderName"]) == (True, "mlp-post-act")
    assert (body["hasAttentionAutoencoder"], body["attentionAutoencoderName"]) == (True, "resid-delta-attn")

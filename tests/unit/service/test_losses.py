"""Losses on the wire: what each name needs and does not take, where it is taken, and those of Debug."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.limits import Limits
from tdb_server.domain.requests import InferenceSubRequest, LossConfig, LossName, MultipleTopKSpec
from tdb_server.errors import InvalidRequest
from tdb_server.gateway.json_requests import debug_request
from tdb_server.service.message_survey import check_lists
from transformer_debugger.v1.loss_pb2 import LossFnConfig
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from tests.unit.service.infer_changes import HEAD, traced
from tests.unit.service.tiny_requests import N_TOKENS, PROMPT, Change, debug, infer, node, parse, violations

AT = "inference_spec.loss_fn_config"
VECTOR = [0.5] * 48


def loss(**fields: Any) -> Change:
    def change(message: Any) -> None:
        message.inference_spec.loss_fn_config.CopyFrom(ParseDict(fields, LossFnConfig()))

    return change


def direction(place: str = "RESID_POST_MLP", layer: int | None = 1, vector: Any = VECTOR) -> dict[str, Any]:
    told = {"place": f"ACTIVATION_LOCATION_TYPE_{place}", "vector": vector}
    return {
        "name": "LOSS_FN_NAME_DIRECTION",
        "direction": told if layer is None else told | {"layerIndex": layer},
    }


def of_targets(name: str, n_targets: int = 2, **fields: Any) -> dict[str, Any]:
    return {"name": f"LOSS_FN_NAME_{name}", "targetTokenIds": [5, 6][:n_targets], **fields}


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        (of_targets("LOG_PROB", 0), [("target_tokens", "FIELD_REQUIRED")]),
        (of_targets("LOG_PROB", distractorTokenIds=[1]), [("distractor_token_ids", "FIELD_NOT_ALLOWED")]),
        (of_targets("LOG_PROB", targetWeights=[1]), [("target_weights", "OUT_OF_RANGE")]),
        (of_targets("LOG_PROB", targetWeights=[1, "NaN"]), [("target_weights[1]", "NOT_FINITE")]),
        (of_targets("PROBS", targetWeights=[1, 2]), [("target_weights", "FIELD_NOT_ALLOWED")]),
        (of_targets("PROBS", tokenIndex=N_TOKENS), [("token_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
        (of_targets("PROBS", tokenIndex=-2), [("token_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
        (of_targets("PROBS", direction={}), [("direction", "FIELD_NOT_ALLOWED")]),
        ({"name": "LOSS_FN_NAME_DIRECTION"}, [("direction", "FIELD_REQUIRED")]),
        ({"name": "LOSS_FN_NAME_DIRECTION", "direction": {}}, [("direction.place", "FIELD_REQUIRED")]),
        (direction() | {"targetTokenIds": [1]}, [("target_token_ids", "FIELD_NOT_ALLOWED")]),
        (direction("MLP_POST_ACT"), [("direction.place", "FIELD_NOT_ALLOWED")]),
        (direction(layer=None), [("direction.layer_index", "FIELD_REQUIRED")]),
        (direction(layer=3), [("direction.layer_index", "LAYER_OUT_OF_RANGE")]),
        (direction("RESID_POST_EMB"), [("direction.layer_index", "FIELD_NOT_ALLOWED")]),
        (direction(vector=VECTOR[1:]), [("direction.vector", "OUT_OF_RANGE")]),
        (direction(vector=[*VECTOR[1:], "Infinity"]), [("direction.vector[47]", "NOT_FINITE")]),
    ],
)
def test_refused(fields: dict[str, Any], fault: list[tuple[str, str]]) -> None:
    expected = [(f"sub_requests[0].{AT}.{field}", reason) for field, reason in fault]
    assert violations(infer(loss(**fields))) == expected


KL = {"name": "LOSS_FN_NAME_KL_FROM_BASELINE"}


def with_baselines(message: Any) -> None:
    message.inference_spec.baseline_prompts.append(PROMPT)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"targetTokenIds": [5]}, [("target_token_ids", "FIELD_NOT_ALLOWED")]),
        ({"targetTokens": [" the"]}, [("target_tokens", "FIELD_NOT_ALLOWED")]),
        ({"distractorTokenIds": [5]}, [("distractor_token_ids", "FIELD_NOT_ALLOWED")]),
        ({"targetWeights": [1]}, [("target_weights", "FIELD_NOT_ALLOWED")]),
        ({"direction": {}}, [("direction", "FIELD_NOT_ALLOWED")]),
        ({"tokenIndex": N_TOKENS}, [("token_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
    ],
)
def test_a_divergence_takes_nothing_but_a_token(fields: dict[str, Any], fault: list[tuple[str, str]]) -> None:
    expected = [(f"sub_requests[0].{AT}.{field}", reason) for field, reason in fault]
    assert violations(infer(loss(**KL, **fields), with_baselines)) == expected


def test_a_divergence_needs_a_baseline() -> None:
    fault = "BASELINE_REQUIRED"
    assert violations(infer(loss(**KL))) == [("sub_requests[0].inference_spec.baseline_prompts", fault)]
    assert violations(debug(with_loss(**KL))) == [("sub_requests[0].baseline_prompts", fault)]
    config = LossConfig(LossName.KL_FROM_BASELINE, token_index=2)
    assert parsed(infer(loss(**KL, tokenIndex=2), with_baselines)) == config
    body = {"prompt": PROMPT, "baselinePrompts": [PROMPT], "topAndBottomKForNodeTable": 3}
    told = {"name": "kl_from_baseline", "tokenIndex": 2}
    assert parsed(debug_request({"subRequests": [body | {"lossFnConfig": told}]})) == config


def test_a_value_is_not_traced_towards_a_direction() -> None:
    found = violations(infer(loss(**direction()), traced(node(HEAD, 1, 4, 2, 0), trace_type=4)))
    assert found == [(f"sub_requests[0].{AT}.name", "FIELD_NOT_ALLOWED")]


def parsed(request: Any) -> LossConfig:
    (found,) = parse(request)
    assert isinstance(found, InferenceSubRequest)
    assert found.inference.loss is not None
    return found.inference.loss


def test_understood() -> None:
    weighted = of_targets("LOG_PROB", targetWeights=[0.5, 2], tokenIndex=3)
    assert parsed(infer(loss(**weighted))) == LossConfig(LossName.LOG_PROB, (5, 6), (), 3, (0.5, 2.0))
    for last in (-1, N_TOKENS - 1):
        assert parsed(infer(loss(**of_targets("PROBS", tokenIndex=last)))).token_index is None
    found = parsed(infer(loss(**direction("RESID_POST_EMB", None)))).direction
    assert found is not None
    assert (found.hook_point, found.layer_index) == (HookPoint.RESID_POST_EMB, None)
    assert found.vector == (0.5,) * 48


def with_loss(**fields: Any) -> Change:
    def change(message: Any) -> None:
        message.ClearField("target_tokens")
        message.ClearField("distractor_tokens")
        message.loss_fn_config.CopyFrom(ParseDict(fields, LossFnConfig()))

    return change


def test_a_debug_request_has_another_loss() -> None:
    request = debug(with_loss(**of_targets("LOG_PROB", tokenIndex=3)))
    assert parsed(request) == LossConfig(LossName.LOG_PROB, (5, 6), (), 3)
    logits = parse(request)[0].processing["topOutputTokenLogits"]
    assert isinstance(logits, MultipleTopKSpec)
    assert logits.token_index == 3
    request.sub_requests[0].target_tokens.append(" the")
    assert violations(request) == [("sub_requests[0].target_tokens", "FIELD_NOT_ALLOWED")]
    nameless = debug(with_loss(targetTokenIds=[1]))
    assert violations(nameless) == [("sub_requests[0].loss_fn_config.name", "FIELD_REQUIRED")]


def test_the_json_body_of_one() -> None:
    told = {
        "name": "direction",
        "tokenIndex": 2,
        "direction": {"place": "resid.post_attn", "layerIndex": 1, "vector": VECTOR},
    }
    body = {"prompt": PROMPT, "topAndBottomKForNodeTable": 3, "lossFnConfig": told}
    found = parsed(debug_request({"subRequests": [body]}))
    assert (found.name, found.token_index) == (LossName.DIRECTION, 2)
    assert found.direction is not None
    assert found.direction.hook_point is HookPoint.RESID_POST_ATTN


def test_long_vectors_are_counted_by_their_numbers() -> None:
    request = debug(with_loss(**direction(vector=[0.1] * 16_384)))
    check_lists(request.SerializeToString(), DebugRequest.DESCRIPTOR, Limits())
    request.sub_requests[0].loss_fn_config.direction.vector.extend([0.1] * 65_536)
    with pytest.raises(InvalidRequest, match="vector"):
        check_lists(request.SerializeToString(), DebugRequest.DESCRIPTOR, Limits())

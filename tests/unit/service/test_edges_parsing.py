"""Requests for edges: what they stand for, and what is refused by its field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tdb_server.domain.activation_cost import activation_bytes
from tdb_server.domain.answer_bytes import answer_bytes
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.edges import EdgeShape, EdgesSpec
from tdb_server.domain.limits import Limits
from tdb_server.domain.requests import LossConfig, LossName
from tdb_server.errors import FailedPrecondition, InvalidRequest, OverLimit
from tdb_server.service.edges_parsing import parse_edges_request
from transformer_debugger.v1.edges_pb2 import EDGE_METHOD_EAP_IG, EdgesSubRequest
from transformer_debugger.v1.loss_pb2 import (
    LOSS_FN_NAME_KL_FROM_BASELINE,
    LOSS_FN_NAME_LOGIT_DIFF,
    LossFnConfig,
)
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferEdgesRequest

from tests.unit.service.tiny_requests import PROMPT, TOKENIZER, model

BASELINE = "The dog sat on the mat"
KL = LossFnConfig(name=LOSS_FN_NAME_KL_FROM_BASELINE)


def request(*changes: Callable[[Any], None], n: int = 1) -> InferEdgesRequest:
    one = EdgesSubRequest(prompt=PROMPT, baseline_prompts=[BASELINE])
    one.loss_fn_config.name = LOSS_FN_NAME_LOGIT_DIFF
    one.loss_fn_config.target_tokens.append(" the")
    for change in changes:
        change(one)
    return InferEdgesRequest(sub_requests=[one] * n)


def parse(asked: InferEdgesRequest, limits: Limits | None = None) -> Any:
    return parse_edges_request(asked, model(), limits or Limits(), TOKENIZER)


def steps(n_steps: int) -> Callable[[Any], None]:
    def change(one: EdgesSubRequest) -> None:
        one.method, one.steps = EDGE_METHOD_EAP_IG, n_steps

    return change


def test_what_a_request_stands_for() -> None:
    (one,) = parse(request())
    assert one.processing == {"edges": EdgesSpec(top_k=10)}
    assert one.inference.ablations == (HOLD_FINAL_NORM_SCALE,)
    assert one.inference.loss.name is LossName.LOGIT_DIFF
    assert len(one.inference.baselines) == 1
    (one,) = parse(request(lambda it: setattr(it, "method", EDGE_METHOD_EAP_IG)))
    assert (one.processing["edges"].n_steps, one.n_rows) == (5, 5)
    (one,) = parse(request(lambda it: it.loss_fn_config.CopyFrom(KL)))
    assert one.inference.loss == LossConfig(LossName.KL_FROM_BASELINE)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (lambda it: it.ClearField("baseline_prompts"), "baseline_prompts", "BASELINE_REQUIRED"),
        (
            lambda it: it.CopyFrom(EdgesSubRequest(prompt=PROMPT, loss_fn_config=KL)),
            "baseline_prompts",
            "BASELINE_REQUIRED",
        ),
        (lambda it: it.baseline_prompts.append("A"), "baseline_prompts[1]", "UNEQUAL_PROMPT_LENGTHS"),
        (lambda it: it.ClearField("loss_fn_config"), "loss_fn_config", "OBJECTIVE_REQUIRED"),
        (
            lambda it: it.loss_fn_config.ClearField("target_tokens"),
            "loss_fn_config.target_tokens",
            "FIELD_REQUIRED",
        ),
        (lambda it: it.ClearField("prompt"), "prompt", "EMPTY_PROMPT"),
        (lambda it: setattr(it, "steps", 3), "steps", "FIELD_NOT_ALLOWED"),
        (steps(0), "steps", "OUT_OF_RANGE"),
        (lambda it: setattr(it, "top_k", 0), "top_k", "OUT_OF_RANGE"),
        (lambda it: setattr(it, "method", 99), "method", "UNKNOWN_ENUM_VALUE"),
    ],
)
def test_what_is_refused(change: Callable[[Any], None], field: str, reason: str) -> None:
    with pytest.raises((InvalidRequest, FailedPrecondition)) as caught:
        parse(request(change))
    assert [(one.field, one.reason) for one in caught.value.violations] == [
        (f"sub_requests[0].{field}", reason)
    ]


@pytest.mark.parametrize(
    ("asked", "field", "reason"),
    [
        (request(lambda it: setattr(it, "top_k", 1001)), "sub_requests[0].top_k", "K_TOO_LARGE"),
        (request(steps(33)), "sub_requests[0].steps", "TOO_MANY_SUB_REQUESTS"),
        (request(steps(2**31 - 1)), "sub_requests[0].steps", "TOO_MANY_SUB_REQUESTS"),
        (request(steps(17), n=2), "sub_requests[1].steps", "TOO_MANY_SUB_REQUESTS"),
    ],
)
def test_too_many_for_the_limits(asked: InferEdgesRequest, field: str, reason: str) -> None:
    limits = Limits(max_sub_requests=32, max_top_and_bottom_k=1000)
    with pytest.raises(OverLimit, match=rf"{field}".replace("[", r"\[").replace("]", r"\]")) as caught:
        parse(asked, limits)
    assert caught.value.reason == reason
    assert len(parse(request(steps(16), n=2), limits)) == 2


def test_steps_are_rows_and_a_matrix_takes_its_bytes() -> None:
    info = model()
    (one,), (many,) = parse(request()), parse(request(steps(8)))
    assert activation_bytes(info, [many]) > 4 * activation_bytes(info, [one])
    shape = EdgeShape.of(info)
    assert (shape.n_writers, shape.n_readers) == (1 + 3 * 5, 3 * 13 + 1)
    whole = replace(one, processing={"edges": EdgesSpec(top_k=10, whole_matrix=True)})
    (most, least), (most_of_list, least_of_list) = answer_bytes(info, [whole]), answer_bytes(info, [one])
    assert most - most_of_list == least - least_of_list == 4 * shape.n_writers * shape.n_readers


def test_matrices_that_nobody_could_take() -> None:
    """16 writers and 40 readers: 2560 bytes each; the spool keeps half of itself for others."""
    whole = request(lambda it: setattr(it, "whole_matrix", True), n=3)
    assert len(parse(whole, replace(Limits(), max_spool_bytes=6 * 2560))) == 3
    with pytest.raises(OverLimit) as caught:
        parse(whole, replace(Limits(), max_spool_bytes=6 * 2560 - 1))
    assert caught.value.reason == "RESPONSE_TOO_LARGE"
    assert caught.value.message == (
        "sub_requests[2].whole_matrix: scores of 16 writers and 40 readers are 640 numbers in 2560 bytes, "
        "after 1280 such numbers before them in the call; its answer may have 1919 in 7679 bytes"
    )
    assert len(parse(request(n=3), replace(Limits(), max_spool_bytes=2))) == 3

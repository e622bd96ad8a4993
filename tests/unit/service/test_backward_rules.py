"""Backward rules as they are asked for, and as answers tell them."""

from __future__ import annotations

import pytest
from tdb_server.domain.requests import BackwardRule
from tdb_server.workers.result_cache import cache_key
from transformer_debugger.v1.backward_rule_pb2 import (
    BACKWARD_RULE_FROZEN_NORMS,
    BACKWARD_RULE_GIM,
    BACKWARD_RULE_GRADIENT,
    BACKWARD_RULE_RELP,
    BACKWARD_RULE_UNSPECIFIED,
)

from tests.unit.service.infer_changes import without_loss
from tests.unit.service.test_call_events import service, streamed
from tests.unit.service.tiny_requests import Change, debug, infer, parse, violations

NUMBERS = {
    BACKWARD_RULE_UNSPECIFIED: BackwardRule.GRADIENT,
    BACKWARD_RULE_GRADIENT: BackwardRule.GRADIENT,
    BACKWARD_RULE_FROZEN_NORMS: BackwardRule.FROZEN_NORMS,
    BACKWARD_RULE_RELP: BackwardRule.RELP,
    BACKWARD_RULE_GIM: BackwardRule.GIM,
}
RULE, PATTERNS = "backward_rule", "attention_pattern_gradients"


def back_by(rule: int, pattern_gradients: bool = False) -> Change:
    """Of either kind of sub-request."""

    def change(message) -> None:
        spec = getattr(message, "inference_spec", message)
        spec.backward_rule, spec.attention_pattern_gradients = rule, pattern_gradients

    return change


@pytest.mark.parametrize("make", [debug, infer])
def test_what_a_number_stands_for(make) -> None:
    for number, rule in NUMBERS.items():
        (found,) = parse(make(back_by(number)))
        assert (found.inference.backward_rule, found.inference.pattern_gradients) == (rule, False)
    (found,) = parse(make(back_by(BACKWARD_RULE_RELP, True)))
    assert found.inference.pattern_gradients


@pytest.mark.parametrize(
    ("rule", "pattern_gradients", "expected"),
    [
        (5, False, [(RULE, "UNKNOWN_ENUM_VALUE")]),
        (-1, True, [(RULE, "UNKNOWN_ENUM_VALUE")]),
        (BACKWARD_RULE_UNSPECIFIED, True, [(PATTERNS, "FIELD_NOT_ALLOWED")]),
        (BACKWARD_RULE_FROZEN_NORMS, True, [(PATTERNS, "FIELD_NOT_ALLOWED")]),
        (BACKWARD_RULE_GIM, True, [(PATTERNS, "FIELD_NOT_ALLOWED")]),
    ],
)
def test_refused(rule: int, pattern_gradients: bool, expected: list[tuple[str, str]]) -> None:
    for make, path in ((debug, "sub_requests[0]"), (infer, "sub_requests[0].inference_spec")):
        found = violations(make(back_by(rule, pattern_gradients)))
        assert found == [(f"{path}.{field}", reason) for field, reason in expected]


def test_without_an_objective_there_is_nothing_for_a_rule_to_do() -> None:
    field = f"sub_requests[0].inference_spec.{RULE}"
    refused = violations(infer(without_loss, back_by(BACKWARD_RULE_RELP)))
    assert refused == [(field, "OBJECTIVE_REQUIRED")]
    assert parse(infer(without_loss, back_by(BACKWARD_RULE_GRADIENT)))


def test_answers_to_different_rules_are_kept_apart() -> None:
    asked = [parse(debug(back_by(number))) for number in list(NUMBERS)[1:]]
    asked.append(parse(debug(back_by(BACKWARD_RULE_RELP, True))))
    assert len({cache_key("owner", "digest", one) for one in asked}) == len(asked)


@pytest.mark.parametrize("number", NUMBERS)
async def test_answers_say_which_rule_it_was(number: int) -> None:
    request, told = debug(back_by(number)), max(number, BACKWARD_RULE_GRADIENT)
    first, *_ = await streamed(service(), request)
    assert [one.backward_rule for one in first.started.sub_requests] == [told]
    answer = await service().Debug(request, None)
    assert [one.backward_rule for one in answer.sub_responses] == [told]

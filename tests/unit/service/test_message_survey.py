from __future__ import annotations

import pytest
from tdb_server.domain.limits import Limits
from tdb_server.errors import FieldsOverLimit, InvalidRequest, OverLimit
from tdb_server.service.message_survey import MAX_TOKEN_IDS, check_lists
from transformer_debugger.v1.ablation_pb2 import AblationSpec
from transformer_debugger.v1.model_service_pb2 import DetokenizeRequest
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferenceSpec,
    InferenceSubRequest,
    InferRequest,
)

from tests.chaos.hostile_messages import field, nested
from tests.chaos.sound_requests import debug_requests

LIMITS = Limits()
EMPTY = b""


def refusal(raw: bytes, message: type = DebugRequest) -> str:
    with pytest.raises((OverLimit, InvalidRequest)) as refused:
        check_lists(raw, message.DESCRIPTOR, LIMITS)
    if isinstance(refused.value, FieldsOverLimit):
        (violation,) = refused.value.violations
        assert refused.value.message == f"{violation.field}: {violation.description}"
    return f"{refused.value.reason} {refused.value.message}"


def test_sound_requests_pass():
    for one in debug_requests():
        check_lists(one.SerializeToString(), one.DESCRIPTOR, LIMITS)


def test_lists_are_counted_up_to_their_limits():
    check_lists(field(1, EMPTY) * 32, DebugRequest.DESCRIPTOR, LIMITS)
    assert refusal(field(1, EMPTY) * 2_000_000).startswith("TOO_MANY_SUB_REQUESTS sub_requests: more than")
    fields = DebugRequest.DESCRIPTOR.fields_by_name["sub_requests"].message_type.fields_by_name
    target = field(fields["target_tokens"].number, b" the")
    assert "sub_requests[0].target_tokens: more than" in refusal(field(1, target * 1025))
    one = field(fields["node_ablations"].number, EMPTY)
    check_lists(field(1, one * 256) * 32, DebugRequest.DESCRIPTOR, LIMITS)
    assert "sub_requests[1].node_ablations: " in refusal(field(1, one) + field(1, one * 257))


def test_a_message_in_pieces_is_one():
    """The inference spec is given twice, which protobuf puts together: their ablations are one list."""
    run = InferRequest.DESCRIPTOR.fields_by_name["sub_requests"].message_type.fields_by_name["inference_spec"]
    ablation = field(run.message_type.fields_by_name["ablation_specs"].number, EMPTY)
    half = field(run.number, ablation * 200)
    check_lists(field(1, half), InferRequest.DESCRIPTOR, LIMITS)
    assert "TOO_MANY_ABLATIONS" in refusal(field(1, half + half), InferRequest)


def test_numbers_are_counted_packed_or_not():
    fields = DebugRequest.DESCRIPTOR.fields_by_name["sub_requests"].message_type.fields_by_name
    number = fields["target_token_ids"].number
    check_lists(field(1, field(number, b"\xff\x01" * 1024)), DebugRequest.DESCRIPTOR, LIMITS)
    assert "target_token_ids: more than" in refusal(field(1, field(number, b"\xff\x01" * 1025)))
    token_ids = DetokenizeRequest(token_ids=range(MAX_TOKEN_IDS))
    check_lists(token_ids.SerializeToString(), token_ids.DESCRIPTOR, LIMITS)
    assert refusal(field(1, b"\x01" * 4_000_000), DetokenizeRequest).startswith("OUT_OF_RANGE token_ids: ")


def test_a_direction_may_be_as_long_as_a_vocabulary():
    def request(n_numbers: int) -> InferRequest:
        ablation = AblationSpec(direction=[1.0] * n_numbers)
        spec = InferenceSpec(ablation_specs=[ablation])
        return InferRequest(sub_requests=[InferenceSubRequest(inference_spec=spec)])

    one = request(262_144)
    check_lists(one.SerializeToString(), one.DESCRIPTOR, LIMITS)
    too_long = request(2**20 + 1).SerializeToString()
    assert "ablation_specs[0].direction: more than" in refusal(too_long, InferRequest)


def test_fields_are_counted_whatever_they_are():
    unknown = b"\xf8\x07\x00"
    assert "REQUEST_TOO_LARGE" in refusal(unknown * 1_300_000)


@pytest.mark.parametrize(
    "raw",
    [b"\xff" * 100, b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 1000, b"\x0f", nested(20_000, tag=1)],
)
def test_what_is_malformed_is_left_for_protobuf(raw):
    check_lists(raw, DebugRequest.DESCRIPTOR, LIMITS)

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from tdb_server import errors
from tdb_server.service.error_status import (
    DOMAIN,
    STATUS_CODES,
    NotImplementedHere,
    error_status,
    status_code,
)
from transformer_debugger.v1.error_pb2 import ErrorReason


def details(error: errors.TdbError, kind: type) -> list:
    found = []
    for packed in error_status(error).details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest([errors.FieldViolation("a", "b", "OUT_OF_RANGE")]), "INVALID_ARGUMENT"),
        (errors.OverLimit("full", "QUEUE_FULL", 1.0), "RESOURCE_EXHAUSTED"),
        (errors.FieldsOverLimit([errors.FieldViolation("a", "b", "K_TOO_LARGE")]), "RESOURCE_EXHAUSTED"),
        (errors.ResponseTooLarge("too large", "StreamDebug"), "RESOURCE_EXHAUSTED"),
        (errors.Unavailable("no", "NO_WORKER_READY", 1.0), "UNAVAILABLE"),
        (errors.Cancelled("gone"), "CANCELLED"),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED"),
        (errors.Unauthenticated("who?"), "UNAUTHENTICATED"),
        (errors.PermissionDenied("no"), "PERMISSION_DENIED"),
        (errors.Internal("abc"), "INTERNAL"),
        (NotImplementedHere("what?"), "UNIMPLEMENTED"),
        (errors.ModelBroken("not for clients"), "INTERNAL"),
    ],
)
def test_codes(error, code):
    assert status_code(error) is grpc.StatusCode[code]
    assert error_status(error).code == grpc.StatusCode[code].value[0]
    (info,) = details(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, DOMAIN)
    if not isinstance(error, errors.ModelError):
        assert f"ERROR_REASON_{info.reason}" in ErrorReason.keys()  # noqa: SIM118 - not a dict


def test_the_table_covers_all_errors_for_clients():
    not_for_clients = {errors.ModelError, errors.ConfigurationBroken}
    bases = {errors.ViolationError, errors.RetryableError}
    for kind in set(errors.TdbError.__subclasses__()) - not_for_clients - bases:
        assert kind in STATUS_CODES


@pytest.mark.parametrize("kind", [errors.InvalidRequest, errors.FailedPrecondition, errors.FieldsOverLimit])
def test_fields_at_fault(kind):
    violations = [
        errors.FieldViolation(f"sub_requests[{i}].prompt", "is empty", "EMPTY_PROMPT") for i in range(2)
    ]
    (bad_request,) = details(kind(violations), error_details_pb2.BadRequest)
    assert [(one.field, one.description, one.reason) for one in bad_request.field_violations] == [
        (one.field, one.description, one.reason) for one in violations
    ]


def test_a_status_stays_within_what_clients_take_as_trailers():
    violations = [errors.FieldViolation("x" * 300, "y" * 5000, "EMPTY_PROMPT")] * 1000
    error = errors.InvalidRequest(violations)
    assert error_status(error).ByteSize() < 7000
    (info,) = details(error, error_details_pb2.ErrorInfo)
    (bad_request,) = details(error, error_details_pb2.BadRequest)
    assert int(info.metadata["violations_left_out"]) + len(bad_request.field_violations) == 1000


def test_when_to_try_again():
    (retry,) = details(errors.OverLimit("full", "QUEUE_FULL", 1.5), error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToNanoseconds() == 1_500_000_000
    assert not details(errors.OverLimit("never", "COST_TOO_HIGH"), error_details_pb2.RetryInfo)


def test_an_internal_error_says_its_id_alone():
    (info,) = details(errors.Internal("abc123"), error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"error_id": "abc123"}

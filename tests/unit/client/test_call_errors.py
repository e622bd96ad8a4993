from __future__ import annotations

import inspect

import grpc
import pytest
import tdb_client
from google.rpc import code_pb2, error_details_pb2, status_pb2
from tdb_client import (
    CallError,
    FieldViolation,
    InternalServerError,
    ResourceExhaustedError,
    TdbError,
    UnavailableError,
    UnreachableError,
)
from tdb_client import errors as client_errors
from tdb_client.errors import call_error, call_errors

from tests.unit.client.fake_service import bad_request, refusal


class FailedCall(grpc.RpcError):
    """What gRPC raises, made by hand."""

    def __init__(self, status: grpc.Status) -> None:
        self.status = status

    def code(self) -> grpc.StatusCode:
        return self.status.code

    def details(self) -> str:
        return self.status.details

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...] | None:
        return self.status.trailing_metadata


def translated(status: grpc.Status) -> CallError:
    return call_error(FailedCall(status), "here:1")  # type: ignore[arg-type]


@pytest.mark.parametrize("code", list(grpc.StatusCode)[1:])
def test_every_status_has_its_exception(code: grpc.StatusCode) -> None:
    error = translated(refusal(code.value[0], "SOME_REASON", message="why"))
    assert error.status == code.name
    assert error.reason == "SOME_REASON"
    assert error.message == str(error) == "why"
    named = code not in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.DATA_LOSS,
    )
    assert (type(error) is not CallError) == named


def test_field_violations_are_told_in_one_line() -> None:
    bad = bad_request(prompt="is\n\n  empty", k="is 0")
    error = translated(refusal(code_pb2.INVALID_ARGUMENT, "EMPTY_PROMPT", bad, violations_left_out="3"))
    assert error.field_violations[1] == FieldViolation("sub_requests[0].k", "is 0", "NOT_ONE_TOKEN")
    assert str(error) == "sub_requests[0].prompt: is empty; sub_requests[0].k: is 0; and 3 more"


def test_a_field_over_a_limit_is_named() -> None:
    error = translated(refusal(code_pb2.RESOURCE_EXHAUSTED, "K_TOO_LARGE", bad_request(k="is 1001")))
    assert type(error) is ResourceExhaustedError
    assert [one.path for one in error.field_violations] == ["sub_requests[0].k"]
    assert str(error) == "sub_requests[0].k: is 1001"


def test_spaces_in_quotes_are_told_as_they_are() -> None:
    bad = bad_request(target="must be one token, and '  to' is 2")
    error = translated(refusal(code_pb2.INVALID_ARGUMENT, "NOT_ONE_TOKEN", bad))
    assert str(error) == "sub_requests[0].target: must be one token, and '  to' is 2"


def test_retries_and_error_ids_are_told() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    busy = translated(refusal(code_pb2.UNAVAILABLE, "NO_WORKER_READY", retry, message="loading"))
    assert type(busy) is UnavailableError
    assert busy.retry_after == 1.5
    assert str(busy) == "loading (try again in 1.5 s)"
    broken = translated(refusal(code_pb2.INTERNAL, "INTERNAL", message="a fault", error_id="e-1"))
    assert isinstance(broken, InternalServerError)
    assert broken.error_id == "e-1"
    assert str(broken) == "a fault (error id e-1)"


def test_a_silent_server_is_told_from_a_busy_one() -> None:
    status = refusal(code_pb2.UNAVAILABLE, "", message="connection refused")._replace(trailing_metadata=None)
    error = translated(status)
    assert isinstance(error, UnreachableError)
    assert error.reason is None
    assert str(error) == "no server answers at here:1: connection refused"


def test_other_details_and_domains_are_not_ours() -> None:
    info = error_details_pb2.ErrorInfo(reason="PROXY", domain="elsewhere")
    status = status_pb2.Status(code=code_pb2.INTERNAL, message="gateway")
    status.details.add().Pack(info)
    status.details.add().Pack(error_details_pb2.Help())
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    error = translated(refusal(code_pb2.INTERNAL, "")._replace(trailing_metadata=trailers, details="gateway"))
    assert error.reason is None
    assert error.message == "gateway"


def test_only_gRPCs_exceptions_are_translated() -> None:  # noqa: N802
    with pytest.raises(KeyError), call_errors("here:1"):
        raise KeyError
    with pytest.raises(InternalServerError), call_errors("here:1"):
        raise FailedCall(refusal(code_pb2.INTERNAL, "INTERNAL"))


def test_every_exception_is_exported_and_drawn() -> None:
    defined = [
        one for _, one in inspect.getmembers(client_errors, inspect.isclass) if issubclass(one, TdbError)
    ]
    assert len(defined) > 15
    for error in defined:
        assert getattr(tdb_client, error.__name__) is error
        assert error.__name__ in (client_errors.__doc__ or "")

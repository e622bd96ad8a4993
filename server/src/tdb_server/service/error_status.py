"""The one table from errors to what goes over the wire, and the `google.rpc.Status` with their details."""

from __future__ import annotations

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tdb_server import errors

DOMAIN = "transformer-debugger"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
MAX_MESSAGE_BYTES = 1024
MAX_VIOLATION_BYTES = 3072
"""Details travel as a trailer, and clients take 8 KiB of trailers by default."""


class NotImplementedHere(errors.TdbError, reason="NOT_IMPLEMENTED"):
    """No such method on this server."""


STATUS_CODES: dict[type[errors.TdbError], tuple[grpc.StatusCode, int]] = {
    errors.InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    errors.FailedPrecondition: (grpc.StatusCode.FAILED_PRECONDITION, 400),
    errors.OverLimit: (grpc.StatusCode.RESOURCE_EXHAUSTED, 413),
    errors.Unavailable: (grpc.StatusCode.UNAVAILABLE, 503),
    errors.Cancelled: (grpc.StatusCode.CANCELLED, 408),
    errors.DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, 408),
    errors.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 401),
    errors.PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, 401),
    errors.Internal: (grpc.StatusCode.INTERNAL, 500),
    NotImplementedHere: (grpc.StatusCode.UNIMPLEMENTED, 501),
}
"""The code over gRPC, and the status over HTTP."""


def status_codes(error: errors.TdbError) -> tuple[grpc.StatusCode, int]:
    """Both codes of an error; INTERNAL and 500 for those that no client should ever see."""
    known = (STATUS_CODES[kind] for kind in type(error).__mro__ if kind in STATUS_CODES)
    return next(known, STATUS_CODES[errors.Internal])


def status_code(error: errors.TdbError) -> grpc.StatusCode:
    """The code of an error over gRPC."""
    return status_codes(error)[0]


def error_status(error: errors.TdbError) -> status_pb2.Status:
    """The error as a status: `ErrorInfo`, `BadRequest` for fields at fault, `RetryInfo` where it helps."""
    message = _shortened(error.message)
    status = status_pb2.Status(code=status_code(error).value[0], message=message)
    information = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_metadata(error))
    details = [information]
    if isinstance(error, errors.ViolationError):
        bad_request, n_left_out = _bad_request(error)
        if n_left_out:
            information.metadata["violations_left_out"] = str(n_left_out)
        details.append(bad_request)
    if isinstance(error, errors.RetryableError) and error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for one in details:
        status.details.add().Pack(one)
    return status


def _metadata(error: errors.TdbError) -> dict[str, str]:
    match error:
        case errors.Internal():
            return {"error_id": error.error_id}
        case errors.ResponseTooLarge():
            return {"streaming_call": error.streaming_call}
        case _:
            return {}


def _bad_request(error: errors.ViolationError) -> tuple[error_details_pb2.BadRequest, int]:
    """The fields at fault, as many as fit, and how many do not."""
    bad_request = error_details_pb2.BadRequest()
    for n_taken, violation in enumerate(error.violations):
        bad_request.field_violations.add(
            field=violation.field, description=_shortened(violation.description), reason=violation.reason
        )
        if n_taken and bad_request.ByteSize() > MAX_VIOLATION_BYTES:
            del bad_request.field_violations[-1]
            return bad_request, len(error.violations) - n_taken + error.n_more
    return bad_request, error.n_more


def _shortened(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return text
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "…"

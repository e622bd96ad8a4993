"""What can go wrong, and how a failed call becomes an exception.

TdbError
├── NodeError (ValueError)           a node is misspelled or does not fit the prompt
├── InvalidValueError (ValueError)   no message can carry a value: text that is none, a number too large
├── UnknownNameError (ValueError)    no derived scalar, place, ... has that name
├── ChatTemplateError                no prompt can be made of a chat
├── OlderServerError                 the server is too old for what was asked
├── ResponseError                    the answer is not as the protos promise
│   ├── ChecksumError                a tensor's bytes changed on the way
│   └── IncompleteResponseError      the stream ended before all was there
└── CallError                        the call failed: status, reason, field violations, retry_after
    ├── InvalidRequestError          INVALID_ARGUMENT: this request can never work
    ├── FailedPreconditionError      FAILED_PRECONDITION: not with what is loaded
    ├── ResourceExhaustedError       RESOURCE_EXHAUSTED: over a limit, or the queue is full
    ├── UnavailableError             UNAVAILABLE: no worker is ready
    │   └── UnreachableError         no server answered at all
    ├── UnauthenticatedError         UNAUTHENTICATED: no token, or a wrong one
    ├── PermissionDeniedError        PERMISSION_DENIED
    ├── CancelledCallError           CANCELLED
    ├── DeadlineError                DEADLINE_EXCEEDED: `timeout` or the server's limit passed
    ├── NotImplementedCallError      UNIMPLEMENTED: this server does not offer it
    └── InternalServerError          INTERNAL: a fault of the server; `error_id` is in its logs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

ERROR_DOMAIN = "transformer-debugger"


class TdbError(Exception):
    """Anything this package raises on purpose."""


class NodeError(TdbError, ValueError):
    """A node is misspelled or does not fit the prompt.

    Attributes:
        path: which node of a sub-request, such as `ablate[0]`; empty where it stands alone.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class InvalidValueError(TdbError, ValueError):
    """A value that no message can carry: text that is none, or a number that is too large.

    Attributes:
        path: what the value is called, such as `sub_requests[0].prompt`.
        description: what is wrong, in words.
    """

    def __init__(self, path: str, description: str) -> None:
        super().__init__(path, description)
        self.path = path
        self.description = description

    def __str__(self) -> str:
        return f"{self.path}: {self.description}"


class UnknownNameError(TdbError, ValueError):
    """No derived scalar, place, group, ... has that name."""


class OlderServerError(TdbError):
    """The server is too old for what was asked, and would skip it without a word."""


class ChatTemplateError(TdbError):
    """No prompt can be made of a chat.

    The model has no chat template, its template refuses the messages or fails, or jinja2 is not installed.
    """


class ResponseError(TdbError):
    """The answer is not as the protos promise."""


class ChecksumError(ResponseError):
    """A tensor's bytes changed on the way."""


class IncompleteResponseError(ResponseError):
    """The stream ended before all was there."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request.

    Attributes:
        path: the field, such as `sub_requests[0].target_tokens[1]`.
        description: what is wrong, in words.
        reason: the same by name, such as `NOT_ONE_TOKEN`. Names are those of the protos' ErrorReason.
    """

    path: str
    description: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.description}"


def in_one_line(text: str) -> str:
    """A message without its line breaks. Other spaces stay: a token in quotes may have several."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


class CallError(TdbError):
    """A call failed.

    Attributes:
        status: name of the gRPC status, such as `INVALID_ARGUMENT`.
        message: what went wrong, in words.
        reason: why, by a name of the protos' ErrorReason; None when it was not the service that refused.
        field_violations: the fields at fault.
        retry_after: seconds after which the same call may work; None when it will not.
        metadata: further facts, such as the limit that was passed.
    """

    def __init__(
        self,
        status: str,
        message: str,
        *,
        reason: str | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        super().__init__(status, message)

    def __str__(self) -> str:
        text = "; ".join(map(str, self.field_violations)) or self.message or self.status
        if "violations_left_out" in self.metadata:
            text += f"; and {self.metadata['violations_left_out']} more"
        if self.error_id:
            text += f" (error id {self.error_id})"
        if self.retry_after is not None:
            text += f" (try again in {self.retry_after:g} s)"
        return in_one_line(text)

    @property
    def error_id(self) -> str | None:
        """Names the fault in the server's logs, when it was the server's."""
        return self.metadata.get("error_id")


class InvalidRequestError(CallError):
    """The request can never work."""


class FailedPreconditionError(CallError):
    """The request cannot work with what is loaded."""


class ResourceExhaustedError(CallError):
    """The request is over a limit, or the queue is full; the latter has `retry_after`."""


class UnavailableError(CallError):
    """No worker is ready to run the call."""


class UnreachableError(UnavailableError):
    """No server answered at all."""


class UnauthenticatedError(CallError):
    """The call carries no token, or a wrong one."""


class PermissionDeniedError(CallError):
    """The caller may not do this."""


class CancelledCallError(CallError):
    """The call was cancelled."""


class DeadlineError(CallError):
    """The timeout, or the server's time limit, passed."""


class NotImplementedCallError(CallError):
    """The server does not offer what was asked for."""


class InternalServerError(CallError):
    """A fault of the server."""


_CLASSES: dict[grpc.StatusCode, type[CallError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.CANCELLED: CancelledCallError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedCallError,
    grpc.StatusCode.INTERNAL: InternalServerError,
}

_HUNG_UP = ("Socket closed", "Connection reset", "Broken pipe")
"""What gRPC says when a server ends a connection at once, as it does to clients it does not take."""


@contextmanager
def call_errors(server: str) -> Iterator[None]:
    """Turns gRPC's exceptions, of sync and async calls alike, into ours, which name the server."""
    try:
        yield
    except grpc.RpcError as error:
        # Raised by a call, which can say more; the stubs do not know.
        raise call_error(error, server) from None  # type: ignore[arg-type]


def call_error(error: grpc.Call, server: str) -> CallError:
    """The exception for a failed call, with the details that the service sent in the trailers."""
    from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # needed here only

    code, message = error.code(), error.details() or ""
    trailers = dict(error.trailing_metadata() or ())
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
        for known in (info, bad, retry):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    from_service = info.domain == ERROR_DOMAIN
    error_class = _CLASSES.get(code, CallError)
    if code is grpc.StatusCode.UNAVAILABLE and not from_service:
        error_class, message = UnreachableError, f"no server answers at {server}: {message}"
        if any(sign in message for sign in _HUNG_UP):
            message += " (it hung up: it may ask for TLS, for none, or for another certificate)"
    return error_class(
        code.name,
        message,
        reason=info.reason if from_service else None,
        field_violations=tuple(
            FieldViolation(one.field, one.description, one.reason) for one in bad.field_violations
        ),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds()
        if retry.HasField("retry_delay")
        else None,
        metadata=info.metadata,
    )

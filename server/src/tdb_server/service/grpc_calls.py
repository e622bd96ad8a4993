"""Puts the guard around gRPC calls, and keeps a record of all: health checks and unknown methods too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor

from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.errors import InvalidRequest, OverLimit, TdbError, Unauthenticated
from tdb_server.service.access.access import Connection
from tdb_server.service.access.caller_ledger import CallerLedger
from tdb_server.service.access.client_address import host_of
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.compressed_requests import message_bytes, unpacked
from tdb_server.service.error_status import STATUS_DETAILS_KEY, NotImplementedHere, error_status, status_code
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.handlers import Convert, answer_of, handler_like
from tdb_server.service.long_requests import is_long, parsed, read_long
from tdb_server.service.telemetry.call_record import CallRecord, recorded
from tdb_server.service.telemetry.load_meter import OUR_METHODS

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context, Handler

OPEN_METHODS = "grpc.health.v1.Health/"
"""Methods that need no token: balancers and probes, which ask for health, have none."""
UNKNOWN_METHOD = "other"
MAX_OTHER_REQUEST_BYTES = 4 * 1024
"""The most for a request to a service that is not ours, such as health. None has a use for more, and a watch
keeps its own for as long as it lasts."""
CALLERS_CLOCK_SECONDS = 0.05
"""A cancellation so shortly before the deadline counts as the deadline's: callers go by their own clocks."""


@dataclass(frozen=True, slots=True)
class GrpcCalls(grpc.aio.ServerInterceptor):
    """The only interceptor.

    Attributes:
        guard: what is around every call of our services. Health needs no token; reflection and channelz
            need one, but count against no limit of its owner.
        threads: where long requests are read.
        requests: what each method of our services reads, by its full name.
        is_known: whether a method, by its full name, is one that this server has.
        max_calls_per_address: calls that are open at the same time from one address, health checks and
            others that have no caller included. gRPC for Python has no say over connections.
        report_load: puts the server's load into a call's trailers; None where that is not wanted.
    """

    guard: CallGuard
    threads: FairThreads
    requests: Mapping[str, Descriptor]
    is_known: Callable[[str], bool]
    max_calls_per_address: int
    report_load: Callable[[Context], None] | None = None
    _addresses: CallerLedger = field(default_factory=CallerLedger)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See `grpc.aio.ServerInterceptor`."""
        method = handler_call_details.method.lstrip("/")
        metadata = handler_call_details.invocation_metadata or ()
        record = CallRecord(
            method if self.is_known(method) else UNKNOWN_METHOD,
            traceparent=next((str(value) for key, value in metadata if key == "traceparent"), ""),
            keeps_prompts=self.guard.keeps_prompts,
        )
        owner, forwarded_for = None, tuple(_values(metadata, "x-forwarded-for"))
        try:
            if not method.startswith(OPEN_METHODS):
                owner = self.guard.access.token_owner(_values(metadata, "authorization"))
        except Unauthenticated as error:
            return self._refused_unread(record, error)
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._refused_unread(record, NotImplementedHere(f"this server has no method /{method}"))
        if not method.startswith(OUR_METHODS):
            return self._recorded(handler, record)
        return self._guarded(handler, record, owner, forwarded_for)

    def _guarded(
        self, handler: Handler, record: CallRecord, owner: Caller | None, forwarded_for: tuple[str, ...]
    ) -> Handler:
        answer, is_stream, limits = answer_of(handler), bool(handler.response_streaming), self.guard.limits
        serialize = _counting_sent(handler.response_serializer, record)

        async def answer_read(requests: list[Any], context: Context) -> Any:
            request = requests.pop()
            if isinstance(request, bytes):
                request = await read_long(request, self.requests[record.method], limits, self.threads)
            return await answer(request, context)

        async def answer_guarded(raw: bytes, context: Context) -> Any:
            record.peer, record.received_bytes = context.peer(), message_bytes(raw)
            request: list[Any] = [raw]
            del raw  # of megabytes, perhaps, and not needed any more once it is read

            async def read_and_answer() -> Any:
                connection = Connection(record.peer, host_of(record.peer), forwarded_for)
                names = _certificate_names(context)
                admitted = self.guard.access.admitted(record, owner, connection, names)
                with self._one_of_address(context), admitted:
                    self._report(context)  # for those that are refused, which happens soon
                    _check_size(request[0], limits.max_request_bytes)
                    if not is_long(request[0]):
                        request[0] = parsed(request[0], handler.request_deserializer)
                    async with self.guard.in_time():
                        response = await _noting_deadlines(answer_read(request, context), record, context)
                    self._report(context)
                    return response if is_stream else serialize(response)

            return await self.guard.answered(record, read_and_answer, partial(_abort, context))

        # The request is deserialized only once its caller is found to be within limits.
        return handler_like(handler, answer_guarded, None, serialize if is_stream else None)

    def _recorded(self, handler: Handler, record: CallRecord) -> Handler:
        """A handler that is not ours, left as it is but for the record."""
        answer, is_stream = answer_of(handler), bool(handler.response_streaming)
        serialize = _counting_sent(handler.response_serializer, record)
        count_and_read = _counting_received(handler.request_deserializer, record)

        def read(raw: bytes) -> Any:
            _check_size(raw, MAX_OTHER_REQUEST_BYTES)
            return parsed(unpacked(raw), count_and_read)

        reads_stream = bool(handler.request_streaming)

        async def answer_recorded(request: Any, context: Context) -> Any:
            record.peer = context.peer()
            unread = [request]
            del request  # as above
            with recorded(record, self.guard.listeners):
                try:
                    request = unread.pop() if reads_stream else read(unread.pop())
                    with self._one_of_address(context):
                        response = await _noting_deadlines(answer(request, context), record, context)
                    return response if is_stream else serialize(response)
                except (InvalidRequest, OverLimit) as error:
                    record.status, record.reason = status_code(error).name, error.reason
                    return await _abort(context, error)
                except Exception:  # an abort, mostly
                    record.status = _code_name(context)
                    raise

        serialize_later = serialize if is_stream else None
        return handler_like(handler, answer_recorded, read if reads_stream else None, serialize_later)

    def _refused_unread(self, record: CallRecord, error: TdbError) -> Handler:
        """A handler for any method, for which no byte of the request is read."""

        async def refuse(_: Any, context: Context) -> None:
            record.peer = context.peer()

            async def fail() -> None:
                raise error

            await self.guard.answered(record, fail, partial(_abort, context))

        handler: Handler = grpc.stream_stream_rpc_method_handler(refuse)
        return handler

    def _one_of_address(self, context: Context) -> AbstractContextManager[None]:
        address = host_of(context.peer())
        return self._addresses.one_call(Caller(address, CallerLimits(self.max_calls_per_address)))

    def _report(self, context: Context) -> None:
        if self.report_load is not None:
            self.report_load(context)


def _check_size(raw: bytes, allowed: int) -> None:
    if (n_bytes := max(len(raw), message_bytes(raw))) > allowed:
        message = f"the request has {n_bytes} bytes; at most {allowed} are allowed"
        raise OverLimit(message, "REQUEST_TOO_LARGE")


async def _abort(context: Context, error: TdbError) -> None:
    """Ends a call with an error.

    Raises:
        AbortError: always, gRPC's way of ending a call; unless
        CancelledError: the client has gone.
    """
    error.__traceback__ = None  # gRPC keeps what is raised here for a while, and with it all that it leads to
    status = error_status(error)
    details = status.SerializeToString()
    trailers = (*(context.trailing_metadata() or ()), (STATUS_DETAILS_KEY, details))
    try:
        await context.abort(status_code(error), status.message, trailers)
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError("the client has gone") from gone


async def _noting_deadlines(answer: Awaitable[Any], record: CallRecord, context: Context) -> Any:
    try:
        return await answer
    except asyncio.CancelledError:
        left: float | None = context.time_remaining()  # None where there is no deadline
        is_late = left is not None and left < CALLERS_CLOCK_SECONDS
        record.status = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
        raise


def _values(metadata: Sequence[tuple[str, str | bytes]], key: str) -> list[str]:
    return [str(value) for name, value in metadata if name == key]


def _certificate_names(context: Context) -> list[str]:
    """The names in the client's certificate, which the handshake has checked; the best known first."""
    properties = context.auth_context()
    keys = ("x509_common_name", "x509_subject_alternative_name", "x509_subject")
    return [name.decode(errors="replace") for key in keys for name in properties.get(key, ())]


def _code_name(context: Context) -> str:
    """What a servicer that is not ours has set; nothing when it broke."""
    code: object = context.code()
    return code.name if isinstance(code, grpc.StatusCode) and code.value[0] else "UNKNOWN"


def _counting_received(deserialize: Convert, record: CallRecord) -> Callable[[bytes], Any]:
    def count_and_deserialize(raw: bytes) -> Any:
        record.received_bytes += len(raw)
        return raw if deserialize is None else deserialize(raw)

    return count_and_deserialize


def _counting_sent(serialize: Convert, record: CallRecord) -> Callable[[Any], bytes]:
    def serialize_and_count(response: Any) -> bytes:
        raw: bytes = response if serialize is None else serialize(response)
        record.sent_bytes += len(raw)
        return raw

    return serialize_and_count

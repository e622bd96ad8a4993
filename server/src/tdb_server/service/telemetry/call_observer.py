"""Keeps a record of every gRPC call, health checks and refused calls included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tdb_server.service.handlers import Convert, answer_of, handler_like
from tdb_server.service.telemetry.call_record import CallListener, CallRecord, recorded

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context, Handler

UNKNOWN_METHOD = "other"
CALLERS_CLOCK_SECONDS = 0.05
"""A caller gives up by its own clock, a little before the deadline is over by ours."""


class CallObserver(grpc.aio.ServerInterceptor):
    """The outermost interceptor.

    Args:
        listeners: told about each call.
        is_known: whether a method, by its full name, is one that this server has.
        keeps_prompts: whether records may have the prompts.
    """

    def __init__(
        self, listeners: Sequence[CallListener], is_known: Callable[[str], bool], *, keeps_prompts: bool
    ) -> None:
        self._listeners = tuple(listeners)
        self._is_known = is_known
        self._keeps_prompts = keeps_prompts

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See `grpc.aio.ServerInterceptor`."""
        method = handler_call_details.method.lstrip("/")
        name = method if self._is_known(method) else UNKNOWN_METHOD
        record = CallRecord(name, keeps_prompts=self._keeps_prompts)
        for key, value in handler_call_details.invocation_metadata or ():
            if key == "traceparent":
                record.traceparent = str(value)
        handler = await continuation(handler_call_details)
        return None if handler is None else self._recorded(handler, record)

    def _recorded(self, handler: Handler, record: CallRecord) -> Handler:
        answer = answer_of(handler)
        serialize = _counting_sent(handler.response_serializer, record)

        async def answer_and_record(request: Any, context: Context) -> Any:
            record.peer = context.peer()
            with recorded(record, self._listeners):
                try:
                    response = await answer(request, context)
                    return response if handler.response_streaming else serialize(response)
                except asyncio.CancelledError:
                    left: float | None = context.time_remaining()  # None where there is no deadline
                    is_late = left is not None and left < CALLERS_CLOCK_SECONDS
                    if record.status == "OK":  # else it had failed before the client left
                        record.status = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
                    raise
                except Exception:  # an abort, mostly: those of our own are noted already
                    if record.status == "OK":
                        record.status = _code_name(context)
                    raise

        return handler_like(
            handler,
            answer_and_record,
            _counting_received(handler.request_deserializer, record),
            serialize if handler.response_streaming else None,
        )


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

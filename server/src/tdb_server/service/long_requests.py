"""Reads requests that are long or compressed beside the event loop, where they hold up nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tdb_server.domain.limits import Limits
from tdb_server.errors import FieldViolation, InvalidRequest
from tdb_server.service.caller import current_caller
from tdb_server.service.compressed_requests import is_compressed, message_bytes, unpacked
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.handlers import handler_like
from tdb_server.service.message_survey import check_lists

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Handler

LONG_REQUEST_BYTES = 2 * 1024
"""What is shorter is read in a few milliseconds, however it was made up."""
MEMORY_FACTOR = 3
"""Times a long request's bytes, what it takes while it is read: as bytes, as a message, as what it means."""


class LongRequests(grpc.aio.ServerInterceptor):
    """The innermost interceptor: hands servicers the message that a long or compressed request is.

    Args:
        messages: what each method reads, by its full name.
        limits: of requests.
        threads: where they are read.
    """

    def __init__(self, messages: dict[str, Descriptor], limits: Limits, threads: FairThreads) -> None:
        self._messages = messages
        self._limits = limits
        self._threads = threads

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        message = self._messages.get(handler_call_details.method.lstrip("/"))
        if handler is None or message is None:
            return handler
        read_now: Any = handler.request_deserializer
        answer: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        def read_short(raw: bytes) -> Any:
            return [raw] if len(raw) > LONG_REQUEST_BYTES or is_compressed(raw) else read_now(raw)

        async def unary(request: Any, context: Any) -> Any:
            return await answer(await self._read(request, message), context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with aclosing(answer(await self._read(request, message), context)) as responses:
                async for response in responses:
                    yield response

        answer_read: Any = stream if handler.response_streaming else unary
        return handler_like(handler, answer_read, read_short, handler.response_serializer)

    async def _read(self, request: Any, message: Descriptor) -> Any:
        """The message that was sent.

        Raises:
            OverLimit: it holds too much, or too many others are being read.
            InvalidRequest: it is none, or cannot be unpacked.
        """
        if not isinstance(request, list):
            return request
        raw: bytes = request.pop()  # whoever else has the list keeps nothing large
        caller = current_caller().name
        return await self._threads.run(
            caller, MEMORY_FACTOR * message_bytes(raw), lambda: _message(raw, message, self._limits)
        )


def _message(raw: bytes, message: Descriptor, limits: Limits) -> Any:
    content = unpacked(raw)
    check_lists(content, message, limits)
    try:
        return GetMessageClass(message).FromString(content)
    except DecodeError:
        description = "the bytes are not a message of the expected type"
        raise InvalidRequest([FieldViolation("", description, "MALFORMED_REQUEST")]) from None

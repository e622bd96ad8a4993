"""The services of this process as a channel, over which a client asks them without a network between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from tdb_server.domain.budget import Budget
from tdb_server.errors import TdbError
from tdb_server.service.error_status import STATUS_DETAILS_KEY, error_status, status_code


class Refusal(grpc.RpcError):
    """An error of the services, as a client reads those that come over a network."""

    def __init__(self, error: TdbError) -> None:
        super().__init__(error.message)
        self._code, self._status = status_code(error), error_status(error)

    def code(self) -> grpc.StatusCode:
        """As `grpc.Call`."""
        return self._code

    def details(self) -> str:
        """As `grpc.Call`."""
        return str(self._status.message)

    def trailing_metadata(self) -> Any:
        """As `grpc.Call`."""
        return ((STATUS_DETAILS_KEY, self._status.SerializeToString()),)


class InProcessChannel:
    """What stubs need of a `grpc.aio.Channel`. It lives for one request, and closing it cancels its calls.

    Args:
        services: servicers by the names of their services; they answer in the caller's context.
        memory: the budget that answers take their bytes from, as a client gathers them.
        caller: whose bytes they are.
    """

    def __init__(self, services: Mapping[str, object], memory: Budget, caller: str) -> None:
        self._services = services
        self._memory = memory
        self._caller = caller
        self._n_bytes = 0
        self._calls: list[asyncio.Future[Message]] = []
        self._streams: list[AsyncGenerator[Message]] = []

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Message]]:
        """See `grpc.aio.Channel`."""
        answer = self._method(method)

        async def answered(request: Message) -> Message:
            try:
                return self._taken(await answer(request, None))
            except TdbError as error:
                raise Refusal(error) from error

        def call(request: Message, **_: Any) -> asyncio.Future[Message]:
            begun = asyncio.ensure_future(answered(request))  # as over a network, whether awaited or not
            self._calls.append(begun)
            return begun

        return call

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., InProcessStream]:
        """See `grpc.aio.Channel`."""
        answer = self._method(method)

        def call(request: Message, **_: Any) -> InProcessStream:
            messages = answer(request, None)
            self._streams.append(messages)
            return InProcessStream(messages, self._taken)

        return call

    async def close(self) -> None:
        """Ends all calls, and waits until they have ended."""
        try:
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            for stream in self._streams:
                await stream.aclose()
        finally:
            self._memory.give_back(self._caller, self._n_bytes)
            self._n_bytes = 0

    def _method(self, method: str) -> Any:
        service, _, name = method.strip("/").partition("/")
        return getattr(self._services[service.rpartition(".")[2]], name)

    def _taken(self, message: Message) -> Message:
        n_bytes = message.ByteSize()
        self._memory.take(self._caller, n_bytes)
        self._n_bytes += n_bytes
        return message


class InProcessStream:
    """The messages of one call.

    Args:
        messages: as they come.
        taken: called with each message, which it may refuse.
    """

    def __init__(self, messages: AsyncIterator[Message], taken: Callable[[Message], Message]) -> None:
        self._messages = messages
        self._taken = taken

    def __aiter__(self) -> InProcessStream:
        return self

    async def __anext__(self) -> Message:
        """The next message.

        Raises:
            Refusal: the call is refused, or has failed.
        """
        try:
            message = self._taken(await anext(self._messages))
        except TdbError as error:
            raise Refusal(error) from error
        await asyncio.sleep(0)  # other calls get their turn between the parts of a long answer
        return message

    def cancel(self) -> None:
        """Nothing more is read; the channel ends the call when it is closed, just after."""

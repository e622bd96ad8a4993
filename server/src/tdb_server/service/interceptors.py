"""What happens around every call: faults become typed statuses, time is limited, and draining refuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from tdb_server.domain.limits import Limits
from tdb_server.errors import (
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidRequest,
    OverLimit,
    TdbError,
    Unavailable,
)
from tdb_server.service.error_status import NotImplementedHere
from tdb_server.service.handlers import handler_that_refuses, write
from tdb_server.service.refusal import refuse

_log = logging.getLogger(__name__)
if TYPE_CHECKING:  # generic for the type checker alone
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

OUR_METHODS = "/transformer_debugger."
SILENCE_SECONDS, LONGEST_TALK_SECONDS = 0.25, 3.0
LONGEST_HOLD_SECONDS = 1.0


class OpenCalls:
    """Calls that are being answered, and whether more are welcome."""

    def __init__(self) -> None:
        self._n_open = 0
        self._is_draining = False
        self._active_at = -math.inf
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    @contextlib.contextmanager
    def one(self) -> Any:
        """Around the answering of one call.

        Raises:
            Unavailable: the server is stopping.
        """
        self._active_at = time.monotonic()
        if self._is_draining:
            raise Unavailable("the server is shutting down", "SHUTTING_DOWN", retry_after_seconds=1.0)
        self._n_open += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self._n_open -= 1
            self._active_at = time.monotonic()
            if not self._n_open:
                self._none_open.set()

    async def drain(self, grace_seconds: float) -> None:
        """Refuses new calls from now on, and waits until the open ones are done, at most this long."""
        self._is_draining = True
        self._active_at = time.monotonic()  # whoever watches health has to hear of it first
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), grace_seconds)

    async def silence(self) -> None:
        """Waits for a moment in which nobody calls, until callers have noticed that they should not.

        A call that comes while gRPC's server ends is CANCELLED, which callers do not repeat. So those that
        come now are held until `let_go`: who waits for an answer does not call again meanwhile.
        """
        self._goes_on.clear()
        latest = time.monotonic() + LONGEST_TALK_SECONDS
        while (seconds := min(latest, self._active_at + SILENCE_SECONDS) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(seconds)  # what is awaited is that nothing happens

    async def held(self) -> None:
        """Before a call: comes back when it may be refused."""
        if not self._goes_on.is_set():
            self._active_at = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._goes_on.wait(), LONGEST_HOLD_SECONDS)

    def let_go(self) -> None:
        """Calls that are held are refused."""
        self._goes_on.set()


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps the methods of our own services. Health and reflection are left as they are."""

    def __init__(self, limits: Limits, calls: OpenCalls) -> None:
        self._limits = limits
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """See `grpc.aio.ServerInterceptor`."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            return self._no_such_method(method)
        if not method.startswith(OUR_METHODS):
            return handler
        deserialize = self._deserializer(handler.request_deserializer)
        if handler.response_streaming:
            stream = self._guarded_stream(method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, deserialize, handler.response_serializer)
        unary = self._guarded_unary(method, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(unary, deserialize, handler.response_serializer)

    def _guarded_unary(self, method: str, answer: Any) -> Any:
        async def guarded(request: Any, context: Context) -> Any:
            return await self._guard(method, request, context, lambda: answer(request, context))

        return guarded

    def _guarded_stream(self, method: str, answer: Any) -> Any:
        async def write_all(request: Any, context: Context) -> None:
            responses: AsyncIterator[Any] = answer(request, context)
            # Closed here, not by the garbage collector: closing is what cancels the work.
            async with contextlib.aclosing(responses):  # type: ignore[type-var]
                async for response in responses:
                    await write(context, response)

        async def guarded(request: Any, context: Context) -> None:
            await self._guard(method, request, context, lambda: write_all(request, context))

        return guarded

    async def _guard(
        self, method: str, request: Any, context: Context, answer: Callable[[], Awaitable[Any]]
    ) -> Any:
        try:
            if isinstance(request, TdbError):
                raise request
            await self._calls.held()
            with self._calls.one():
                return await self._in_time(answer)
        except grpc.aio.AbortError:
            raise
        except TdbError as error:
            await refuse(context, error)
        except Exception:
            error_id = uuid.uuid4().hex[:12]
            _log.exception("internal error %s in %s", error_id, method)
            await refuse(context, Internal(error_id))

    async def _in_time(self, answer: Callable[[], Awaitable[Any]]) -> Any:
        timeout = asyncio.timeout(self._limits.max_call_seconds)
        try:
            async with timeout:
                return await answer()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise DeadlineExceeded(
                f"the call took longer than the {self._limits.max_call_seconds:g} s this server allows",
                "CALL_TIME_LIMIT",
            ) from None

    def _deserializer(self, deserialize: Any) -> Any:
        """Reads a request; where that fails the error takes its place, as gRPC would say nothing useful."""

        def deserialize_or_say_why_not(raw: bytes) -> Any:
            if len(raw) > self._limits.max_request_bytes:
                return OverLimit(
                    f"the request has {len(raw)} bytes; at most {self._limits.max_request_bytes} are allowed",
                    "REQUEST_TOO_LARGE",
                )
            try:
                return deserialize(raw)
            except DecodeError:
                description = "the bytes are not a message of the expected type"
                return InvalidRequest([FieldViolation("", description, "MALFORMED_REQUEST")])

        return deserialize_or_say_why_not

    def _no_such_method(self, method: str) -> Handler:
        error = NotImplementedHere(f"this server has no method {method}")
        return handler_that_refuses(partial(refuse, error=error))

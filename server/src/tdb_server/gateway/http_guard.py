"""What happens around every HTTP request: who may call, limits of time and size, faults, the record of it."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tdb_server.domain.limits import Limits
from tdb_server.errors import Cancelled, DeadlineExceeded, Internal, OverLimit, TdbError
from tdb_server.gateway.http_errors import error_response
from tdb_server.gateway.json_faults import malformed
from tdb_server.service.access.access import Access, Connection
from tdb_server.service.error_status import status_code
from tdb_server.service.interceptors import OpenCalls
from tdb_server.service.telemetry.call_record import CallListener, CallRecord, recorded

_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Body = dict[str, Any] | list[Any]
Answer = Callable[[Any], Awaitable[Callable[[], Body]]]
"""From a parsed body to what makes the answer's body, which is done beside the event loop."""


def _open_to_all() -> Access:
    return Access(None)


@dataclass(frozen=True, slots=True)
class HttpGuard:
    """Around the answering of requests, as the interceptors are around gRPC calls.

    Attributes:
        limits: the limits in force; of them, request bytes and call seconds are kept here.
        open_calls: counts calls, and refuses them while the server stops.
        access: who may call.
        listeners: told about each request.
        keeps_prompts: whether records may have the prompts.
    """

    limits: Limits
    open_calls: OpenCalls
    access: Access = field(default_factory=_open_to_all)
    listeners: Sequence[CallListener] = ()
    keeps_prompts: bool = False

    async def answer(self, request: Request, *, answer: Answer, has_body: bool = True) -> Response:
        """Answers one request; whatever goes wrong becomes a status and a message."""
        record = CallRecord(
            f"{request.method} {request.url.path}",
            traceparent=request.headers.get("traceparent", ""),
            peer="" if request.client is None else request.client.host,
            is_http=True,
            keeps_prompts=self.keeps_prompts,
        )
        with recorded(record, self.listeners):
            try:
                response = await self._answer(request, record, answer, has_body=has_body)
            except asyncio.CancelledError:
                record.status = "CANCELLED"
                raise
            except TdbError as error:
                response = _refusal(error, record)
            except Exception:
                error_id = uuid.uuid4().hex[:12]
                _log.exception("internal error %s in %s", error_id, request.url.path)
                response = _refusal(Internal(error_id), record)
            record.http_status = response.status_code
            record.sent_bytes = len(response.body)
            return response

    async def _answer(
        self, request: Request, record: CallRecord, answer: Answer, *, has_body: bool
    ) -> Response:
        owner = self.access.token_owner(request.headers.getlist("authorization"))
        caller = self.access.caller(owner, None, _connection(request))
        record.caller = caller.name
        timeout = asyncio.timeout(self.limits.max_call_seconds)
        try:
            with self.access.one_call(caller), self.open_calls.one():
                async with timeout:
                    body = await self._read_json(request, record) if has_body else None
                    make_body = await _unless_disconnected(request, answer(body))
                    content = await asyncio.to_thread(_encoded, make_body)
                    return Response(content, media_type="application/json")
        except TimeoutError:
            if not timeout.expired():
                raise
            message = f"the call took longer than the {self.limits.max_call_seconds:g} s this server allows"
            raise DeadlineExceeded(message, "CALL_TIME_LIMIT") from None

    async def _read_json(self, request: Request, record: CallRecord) -> Any:
        """The request's body.

        Raises:
            OverLimit: it is too large; what is too much is never read.
            InvalidRequest: it is not JSON.
        """
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            record.received_bytes = len(content)
            if len(content) > self.limits.max_request_bytes:
                allowed = self.limits.max_request_bytes
                message = f"the body has more than the {allowed} bytes allowed"
                raise OverLimit(message, "REQUEST_TOO_LARGE")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise malformed("", f"is not JSON: {error}") from error


def _connection(request: Request) -> Connection:
    host, port = request.client or ("", 0)
    return Connection(f"{host} {port}", host, tuple(request.headers.getlist("x-forwarded-for")))


def _refusal(error: TdbError, record: CallRecord) -> Response:
    record.status, record.reason = status_code(error).name, error.reason
    return error_response(error)


async def _unless_disconnected(request: Request, answer: Awaitable[ResultT]) -> ResultT:
    """The answer; cancelled when the client goes away before it is there.

    Raises:
        Cancelled: the client went away.
    """
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise Cancelled("the client went away")
    finally:
        for task in (answering, leaving):
            task.cancel()
        # Waits until the work has noticed, so that nothing is left behind.
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    """Returns when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _encoded(make_body: Callable[[], Body]) -> bytes:
    return json.dumps(make_body(), ensure_ascii=False, separators=(",", ":")).encode()

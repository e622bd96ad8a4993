"""Puts the guard around HTTP requests: how bodies are read, and answers and errors sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from tdb_server.domain.budget import Budget
from tdb_server.domain.reason import Reason
from tdb_server.errors import Cancelled, DeadlineExceeded, FieldViolation, OverLimit, TdbError
from tdb_server.gateway.http_errors import UnsupportedMediaType, error_body, error_response
from tdb_server.gateway.json_text import PIECE_BYTES, SHORT_BYTES, Body, json_pieces, read_json
from tdb_server.gateway.priority_header import PRIORITY_HEADER, header_priority
from tdb_server.service.access.access import Connection
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.caller import current_caller
from tdb_server.service.enum_names import PRIORITIES
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.telemetry.call_record import CallRecord

ResultT = TypeVar("ResultT")
JSON, LINES = "application/json", "application/x-ndjson"
MEMORY_FACTOR = 16
"""A long body takes this many times its bytes while it is read."""
_threads = ThreadPoolExecutor(2, "answers")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent.

    Attributes:
        body: as JSON.
        n_bytes: what the data that it is made of takes in memory until it is sent.
    """

    body: Body
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """What is sent as it comes, an object of JSON a line.

    Attributes:
        bodies: the objects; closing it ends the work. Raises `TdbError`.
    """

    bodies: AsyncGenerator[Body]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers at one path.

    Attributes:
        read: makes a request of a parsed body, perhaps beside the event loop; raises `TdbError`.
        answer: answers it; raises `TdbError`.
        has_body: whether requests have one.
        has_priority: whether what is read has a priority, as messages have; a header says which.
        names_fields: whether errors name the fields at fault, not for people alone; and one that comes in the
            middle of lines is the last of them.
    """

    read: Callable[[Any], Any]
    answer: Callable[[Any], Awaitable[Answer | Lines]]
    has_body: bool = True
    has_priority: bool = False
    names_fields: bool = False


@dataclass(frozen=True, slots=True)
class HttpCalls:
    """Around the answering of requests, as `GrpcCalls` is around gRPC calls.

    Attributes:
        guard: what is around every call.
        threads: where long bodies are read.
        memory: the budget that bodies and answers take their bytes from.
        max_body_seconds: how long a body may take to come.
    """

    guard: CallGuard
    threads: FairThreads
    memory: Budget
    max_body_seconds: float

    def at(self, endpoint: Endpoint) -> GuardedEndpoint:
        """An endpoint with the guard around it."""
        return GuardedEndpoint(self, endpoint)

    async def read(self, request: Request, record: CallRecord, endpoint: Endpoint) -> Any:
        """A request's body, read and understood.

        Raises:
            UnsupportedMediaType: it does not say that it is JSON.
            OverLimit: it is too large; what is too much is never read. Or too much is being read at once.
            DeadlineExceeded: it does not come.
            Cancelled: the client went away.
            InvalidRequest: it is not JSON, or not what the endpoint reads; or its priority is none.
        """
        if not endpoint.has_body:
            return endpoint.read(None)
        _check_headers(request, self.guard.limits.max_request_bytes)
        priority = header_priority(request.headers.getlist(PRIORITY_HEADER))
        read = await self._body(request, record, endpoint)
        if endpoint.has_priority:
            read.priority = PRIORITIES.number(priority)
        return read

    async def _body(self, request: Request, record: CallRecord, endpoint: Endpoint) -> Any:
        caller = current_caller().name
        try:
            async with asyncio.timeout(self.max_body_seconds):
                content = await self._received(request, record, caller)
            if len(content) <= SHORT_BYTES:
                return endpoint.read(read_json(content))
            return await self.threads.run(
                caller, MEMORY_FACTOR * len(content), lambda: endpoint.read(read_json(content))
            )
        except TimeoutError:
            message = f"the body did not come within {self.max_body_seconds:g} s"
            raise DeadlineExceeded(message, "CALL_TIME_LIMIT") from None
        except ClientDisconnect:
            raise Cancelled("the client went away") from None
        finally:
            self.memory.give_back(caller, record.received_bytes)

    async def _received(self, request: Request, record: CallRecord, caller: str) -> bytearray:
        content = bytearray()
        async for chunk in request.stream():
            _check_size(len(content) + len(chunk), self.guard.limits.max_request_bytes)
            self.memory.take(caller, len(chunk))
            content += chunk
            record.received_bytes = len(content)
        return content


@dataclass(frozen=True, slots=True)
class GuardedEndpoint:
    """An ASGI application.

    Attributes:
        calls: what is around it.
        endpoint: what answers.
    """

    calls: HttpCalls
    endpoint: Endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; whatever goes wrong becomes a status and a message."""
        request = Request(scope, receive)
        guard = self.calls.guard
        record = CallRecord(
            f"{request.method} {scope['path']}",
            traceparent=request.headers.get("traceparent", ""),
            peer="" if request.client is None else request.client.host,
            is_http=True,
            keeps_prompts=guard.keeps_prompts,
        )

        async def answer() -> None:
            owner = guard.access.token_owner(request.headers.getlist("authorization"))
            with guard.access.admitted(record, owner, _connection(request)):
                question = await self.calls.read(request, record, self.endpoint)
                async with guard.in_time():
                    await _unless_disconnected(request, self._answer(question, record, send))

        async def refuse(error: TdbError) -> None:
            names_fields = self.endpoint.names_fields
            if record.http_status:  # in the middle of an answer
                if names_fields:
                    line = {"event": "error", **error_body(error, names_fields=True)}
                    await _send_line(line, record, send)
                    await send({"type": "http.response.body", "body": b""})
                return  # without such a line, its missing end shows that the answer is not whole
            response = error_response(error, names_fields=names_fields)
            record.http_status, record.sent_bytes = response.status_code, len(response.body)
            await response(scope, receive, send)

        await guard.answered(record, answer, refuse)

    async def _answer(self, question: Any, record: CallRecord, send: Send) -> None:
        """Answers, and sends the answer piece by piece: no more of its text is in memory than one piece."""
        answer = await self.endpoint.answer(question)
        if isinstance(answer, Lines):
            await _send_lines(answer.bodies, record, send)
            return
        caller, memory = current_caller().name, self.calls.memory
        memory.take(caller, answer.n_bytes)
        try:
            await _send(answer.body, record, send)
        finally:
            memory.give_back(caller, answer.n_bytes)


def _connection(request: Request) -> Connection:
    host, port = request.client or ("", 0)
    return Connection(f"{host} {port}", host, tuple(request.headers.getlist("x-forwarded-for")))


async def _send(body: Body, record: CallRecord, send: Send) -> None:
    pieces = json_pieces(body)
    next_piece = partial(next, pieces, None)
    piece = await _in_thread(next_piece) or b""
    headers = [(b"content-type", JSON.encode())]
    if is_whole := len(piece) < PIECE_BYTES:
        headers.append((b"content-length", str(len(piece)).encode()))
    record.http_status = 200
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while piece is not None and not is_whole:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        record.sent_bytes += len(piece)
        piece = await _in_thread(next_piece)
    await send({"type": "http.response.body", "body": piece or b""})
    record.sent_bytes += len(piece or b"")


async def _send_lines(bodies: AsyncGenerator[Body], record: CallRecord, send: Send) -> None:
    """Sends each object as soon as it is there; the status is sent with the first."""
    async with aclosing(bodies):
        async for body in bodies:
            if not record.http_status:
                record.http_status = 200
                headers = [
                    (b"content-type", LINES.encode()),
                    (b"cache-control", b"no-store"),
                    (b"x-accel-buffering", b"no"),  # nginx would gather lines until there are many
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _send_line(body, record, send)
    await send({"type": "http.response.body", "body": b""})


async def _send_line(body: Body, record: CallRecord, send: Send) -> None:
    next_piece = partial(next, _line_pieces(body), None)
    while (piece := await _in_thread(next_piece)) is not None:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        record.sent_bytes += len(piece)


def _line_pieces(body: Body) -> Iterator[bytes]:
    """As `json_pieces`, with the line's end in the last."""
    held = b""
    for piece in json_pieces(body):
        if held:
            yield held
        held = piece
    yield held + b"\n"


def _check_headers(request: Request, max_request_bytes: int) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise UnsupportedMediaType(
            [FieldViolation("content-type", f"must be {JSON}", Reason.MALFORMED_REQUEST)]
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        description = "compressed bodies are not read"
        raise UnsupportedMediaType(
            [FieldViolation("content-encoding", description, Reason.MALFORMED_REQUEST)]
        )
    length = request.headers.get("content-length", "")
    _check_size(int(length) if length.isdecimal() else 0, max_request_bytes)


def _check_size(n_bytes: int, allowed: int) -> None:
    if n_bytes > allowed:
        raise OverLimit(f"the body has more than the {allowed} bytes allowed", "REQUEST_TOO_LARGE")


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


async def _in_thread(work: Callable[[], ResultT]) -> ResultT:
    return await asyncio.get_running_loop().run_in_executor(_threads, work)

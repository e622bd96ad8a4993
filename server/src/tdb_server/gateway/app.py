"""The reference's HTTP API, translated to and from the service's own requests.

Every endpoint goes the same way: read the body, translate, let the service answer, translate back. The
service is called inside this process, so that checks, limits and queue are those of gRPC.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformer_debugger.v1.model_service_pb2 import ModelInfo
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    InferResponse,
)

from tdb_server.domain.caller import Caller
from tdb_server.domain.limits import Limits
from tdb_server.errors import Cancelled, DeadlineExceeded, Internal, OverLimit, TdbError
from tdb_server.gateway.http_errors import error_response
from tdb_server.gateway.json_processing import SINGLE_SPECS
from tdb_server.gateway.json_reader import malformed
from tdb_server.gateway.json_requests import debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, model_info_response, single_response
from tdb_server.gateway.openapi import openapi_document
from tdb_server.service.caller import answer_to
from tdb_server.service.interceptors import OpenCalls

LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Web pages of this machine, as the reference's viewer is one."""

_log = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
Body = dict[str, Any]
Answer = Callable[[Any], Awaitable[Callable[[], Body]]]
"""From a parsed body to what makes the answer's body, which is done beside the event loop."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What answers: the same code that answers gRPC. All raise `TdbError`."""

    debug: Callable[[DebugRequest], Awaitable[DebugResponse]]
    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    model_info: Callable[[], Awaitable[ModelInfo]]


def create_gateway(
    backend: Backend,
    limits: Limits,
    open_calls: OpenCalls,
    server_version: str,
    allowed_origins: str = LOCAL_ORIGINS,
) -> Starlette:
    """The HTTP application.

    Args:
        backend: what answers.
        limits: the limits in force; of them, request bytes and call seconds are kept here.
        open_calls: counts calls, and refuses them while the server stops.
        server_version: version of this software.
        allowed_origins: regular expression of the web pages that may call.
    """
    guard = partial(_guarded, limits=limits, open_calls=open_calls)

    async def batched_tdb(body: Any) -> Callable[[], Body]:
        return partial(batched_response, await backend.debug(debug_request(body)))

    async def batched(body: Any) -> Callable[[], Body]:
        return partial(batched_response, await backend.infer(infer_request(body)))

    def single(endpoint: str) -> Answer:
        async def answer(body: Any) -> Callable[[], Body]:
            return partial(single_response, await backend.infer(single_infer_request(endpoint, body)))

        return answer

    async def model_info(_: Any) -> Callable[[], Body]:
        return partial(model_info_response, await backend.model_info())

    answers: dict[str, Answer] = {"batched_tdb": batched_tdb, "batched": batched}
    answers |= {endpoint: single(endpoint) for endpoint in SINGLE_SPECS}
    routes = [
        Route(f"/{name}", partial(guard, answer=answer), methods=["POST"]) for name, answer in answers.items()
    ]
    reads_no_body = partial(guard, answer=model_info, has_body=False)
    document = openapi_document(server_version)
    routes += [
        Route("/model_info", reads_no_body, methods=["POST"]),
        Route("/", _constant({"name": "transformer-debugger", "documentation": "/openapi.json"})),
        Route("/openapi.json", _constant(document)),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origin_regex=allowed_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
    )
    return Starlette(routes=routes, middleware=[cors], exception_handlers={HTTPException: _no_such_page})


async def _guarded(
    request: Request, *, answer: Answer, limits: Limits, open_calls: OpenCalls, has_body: bool = True
) -> Response:
    """Answers one request; whatever goes wrong becomes a status and a message."""
    try:
        with open_calls.one():
            answer_to(Caller("anonymous" if request.client is None else request.client.host))
            async with asyncio.timeout(limits.max_call_seconds):
                body = await _read_json(request, limits.max_request_bytes) if has_body else None
                make_body = await _unless_disconnected(request, answer(body))
                return Response(await asyncio.to_thread(_encoded, make_body), media_type="application/json")
    except TdbError as error:
        return error_response(error)
    except TimeoutError:
        message = f"the call took longer than the {limits.max_call_seconds:g} s this server allows"
        return error_response(DeadlineExceeded(message, "CALL_TIME_LIMIT"))
    except Exception:
        error_id = uuid.uuid4().hex[:12]
        _log.exception("internal error %s in %s", error_id, request.url.path)
        return error_response(Internal(error_id))


async def _read_json(request: Request, max_bytes: int) -> Any:
    """The request's body.

    Raises:
        OverLimit: it is too large; what is too much is never read.
        InvalidRequest: it is not JSON.
    """
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_bytes:
            raise OverLimit(f"the body has more than the {max_bytes} bytes allowed", "REQUEST_TOO_LARGE")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise malformed("", f"is not JSON: {error}") from error


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


def _constant(body: Body) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return JSONResponse(body)

    return answer


async def _no_such_page(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return JSONResponse({"message": detail}, status)

"""The reference's HTTP API, translated to and from the service's own requests.

Every endpoint goes the same way: read the body, translate, let the service answer, translate back. The
service is called inside this process, so that checks, limits and queue are those of gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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

from tdb_server.gateway.http_guard import Answer, Body, HttpGuard
from tdb_server.gateway.json_processing import SINGLE_SPECS
from tdb_server.gateway.json_requests import debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, model_info_response, single_response
from tdb_server.gateway.openapi import WITHOUT_BODY, openapi_document
from tdb_server.gateway.records import RECORD_ANSWERS

LOCAL_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
"""Web pages of this machine, as the reference's viewer is one."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What answers: the same code that answers gRPC. All raise `TdbError`."""

    debug: Callable[[DebugRequest], Awaitable[DebugResponse]]
    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    model_info: Callable[[], Awaitable[ModelInfo]]


def create_gateway(
    backend: Backend, guard: HttpGuard, server_version: str, allowed_origins: str = LOCAL_ORIGINS
) -> Starlette:
    """The HTTP application.

    Args:
        backend: what answers.
        guard: what is around every request.
        server_version: version of this software.
        allowed_origins: regular expression of the web pages that may call.
    """

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

    def of_records(endpoint: str) -> Answer:
        async def answer(body: Any) -> Callable[[], Body]:
            return partial(RECORD_ANSWERS[endpoint], body)

        return answer

    answers: dict[str, Answer] = {"batched_tdb": batched_tdb, "batched": batched, "model_info": model_info}
    answers |= {endpoint: single(endpoint) for endpoint in SINGLE_SPECS}
    answers |= {endpoint: of_records(endpoint) for endpoint in RECORD_ANSWERS}
    routes = [
        Route(
            f"/{name}",
            partial(guard.answer, answer=answer, has_body=name not in WITHOUT_BODY),
            methods=["POST"],
        )
        for name, answer in answers.items()
    ]
    document = openapi_document(server_version)
    routes += [
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


def _constant(body: Body) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return JSONResponse(body)

    return answer


async def _no_such_page(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return JSONResponse({"message": detail}, status)

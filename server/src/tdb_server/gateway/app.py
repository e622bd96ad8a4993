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

from tdb_server.gateway.http_calls import JSON, Answer, Endpoint, HttpCalls
from tdb_server.gateway.json_requests import SINGLE_SPECS, debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, model_info_response, single_response
from tdb_server.gateway.json_text import Body
from tdb_server.gateway.openapi import WITHOUT_BODY, openapi_document
from tdb_server.gateway.records import RECORD_ANSWERS
from tdb_server.service.http.host_check import AllowedHosts, HostCheck


@dataclass(frozen=True, slots=True)
class Backend:
    """What answers: the same code that answers gRPC. All raise `TdbError`."""

    debug: Callable[[DebugRequest], Awaitable[DebugResponse]]
    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    model_info: Callable[[], Awaitable[ModelInfo]]


def create_gateway(backend: Backend, calls: HttpCalls, hosts: AllowedHosts, server_version: str) -> HostCheck:
    """The HTTP application.

    Args:
        backend: what answers.
        calls: what is around every request.
        hosts: names that the server answers to, and whose pages may call.
        server_version: version of this software.
    """

    def computed(read: Callable[[Any], Any], answer: Any, body_of: Callable[[Any], Body]) -> Endpoint:
        async def answer_as_body(request: Any) -> Answer:
            response = await answer(request)
            return Answer(body_of(response), response.ByteSize())

        return Endpoint(read, answer_as_body, has_priority=True)

    async def model_info(_: Any) -> Answer:
        return Answer(model_info_response(await backend.model_info()))

    async def as_read(body: Body) -> Answer:
        return Answer(body)

    endpoints = {
        "batched_tdb": computed(debug_request, backend.debug, batched_response),
        "batched": computed(infer_request, backend.infer, batched_response),
        "model_info": Endpoint(lambda _: None, model_info, has_body=False),
        **{
            name: computed(partial(single_infer_request, name), backend.infer, single_response)
            for name in SINGLE_SPECS
        },
        **{name: Endpoint(read, as_read, name not in WITHOUT_BODY) for name, read in RECORD_ANSWERS.items()},
    }
    routes = [Route(f"/{name}", calls.at(endpoint), methods=["POST"]) for name, endpoint in endpoints.items()]
    routes += [
        Route("/", _constant({"name": "transformer-debugger", "documentation": "/openapi.json"})),
        Route("/openapi.json", _constant(openapi_document(server_version))),
    ]
    methods = ["GET", "POST"]
    cors = Middleware(
        CORSMiddleware, allow_origin_regex=hosts.origins, allow_methods=methods, allow_headers=["*"]
    )
    handlers: Any = {HTTPException: _no_such_page}
    application = Starlette(routes=routes, middleware=[cors], exception_handlers=handlers)
    application.router.redirect_slashes = False  # a redirect would name the host that the request named
    return HostCheck(application, hosts)


def _constant(body: Body) -> Callable[[Request], Awaitable[Response]]:
    content = JSONResponse(body).body  # once: the document is long, and anybody may ask for it

    async def answer(_: Request) -> Response:
        return Response(content, media_type=JSON)

    return answer


async def _no_such_page(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return JSONResponse({"message": detail}, status)

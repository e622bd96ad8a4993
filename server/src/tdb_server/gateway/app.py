"""The reference's HTTP API, translated to and from the service's own requests; and the workbench beside it.

Every endpoint of the reference goes the same way: read the body, translate, let the service answer, translate
back. The service is called inside this process, so that checks, limits and queue are those of gRPC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceServicer
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from tdb_server.domain.answer_bytes import FLOAT_BYTES
from tdb_server.gateway.http_calls import JSON, Answer, Endpoint, HttpCalls
from tdb_server.gateway.json_requests import (
    SINGLE_SPECS,
    debug_request,
    edges_request,
    infer_request,
    single_infer_request,
)
from tdb_server.gateway.json_responses import batched_response, model_info_response, single_response
from tdb_server.gateway.json_text import Body
from tdb_server.gateway.openapi import WITHOUT_BODY, openapi_document
from tdb_server.gateway.records import RECORD_BYTES, RecordEndpoint, record_endpoints
from tdb_server.gateway.workbench.pages import not_found, page_routes
from tdb_server.gateway.workbench.routes import workbench_endpoints
from tdb_server.service.caller import current_caller
from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.http.host_check import AllowedHosts, HostCheck
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.http.probes import Probes
from tdb_server.service.shared_services import SharedServices

if TYPE_CHECKING:
    from tdb_server.examples.reading import ExampleFolder

RESPONSE_FACTOR = 8
"""Answers may have so many `max_response_bytes`: HTTP clients have no streaming call, and no limit."""

MAX_BLOCK_NUMBERS = 2**21
"""In an answer, of hook points' values and matrices of edges: each is some twenty characters of text."""


def http_server(shared: SharedServices) -> HttpListener:
    """The gateway as a server on the settings' HTTP port, in front of the service of the same process."""
    settings, security = shared.settings, shared.settings.security
    max_bytes = RESPONSE_FACTOR * settings.limits.max_response_bytes
    debugger = DebuggerService(shared.calls, max_bytes, min(max_bytes, FLOAT_BYTES * MAX_BLOCK_NUMBERS))
    hosts = AllowedHosts(settings.host, security.allowed_hosts)
    calls = HttpCalls(shared.guard, shared.threads, shared.memory, security.max_body_seconds)
    gateway = create_gateway(debugger, shared.model, calls, hosts, shared.version, shared.examples)
    application = Probes(gateway, shared.is_ready)
    tls = None if shared.tls is None else shared.tls.context()
    return HttpListener(application, settings.host, settings.http_port or 0, security, tls)


def create_gateway(
    debugger: TransformerDebuggerServiceServicer,
    model: ModelServiceServicer,
    calls: HttpCalls,
    hosts: AllowedHosts,
    server_version: str,
    examples: ExampleFolder | None = None,
) -> HostCheck:
    """The HTTP application.

    Args:
        debugger: answers requests, as it answers gRPC's; raises `TdbError`.
        model: says what is served; raises `TdbError`.
        calls: what is around every request.
        hosts: names that the server answers to, and whose pages may call.
        server_version: version of this software.
        examples: texts that activate nodes; None where there are none.
    """

    def computed(read: Callable[[Any], Any], answer: Any, body_of: Callable[[Any], Body]) -> Endpoint:
        async def answer_as_body(request: Any) -> Answer:
            response = await answer(request, None)
            return Answer(body_of(response), response.ByteSize())

        return Endpoint(read, answer_as_body, has_priority=True)

    async def model_info(_: Any) -> Answer:
        get_model_info: Any = model.GetModelInfo
        response = await get_model_info(GetModelInfoRequest(), None)
        return Answer(model_info_response(response.model_info))

    def about_records(name: str, record: RecordEndpoint) -> Endpoint:
        async def answer(question: Any) -> Answer:
            if examples is None:
                return Answer(record.answer(question))
            caller = current_caller().name
            body = await calls.threads.run(caller, RECORD_BYTES, lambda: record.answer(question))
            return Answer(body, RECORD_BYTES)

        return Endpoint(record.read, answer, name not in WITHOUT_BODY)

    endpoints = {
        "batched_tdb": computed(debug_request, debugger.Debug, batched_response),
        "batched": computed(infer_request, debugger.Infer, batched_response),
        "v1/edges": computed(edges_request, debugger.InferEdges, batched_response),
        "model_info": Endpoint(lambda _: None, model_info, has_body=False),
        **{
            name: computed(partial(single_infer_request, name), debugger.Infer, single_response)
            for name in SINGLE_SPECS
        },
        **{name: about_records(name, one) for name, one in record_endpoints(examples).items()},
    }
    services = {"TransformerDebuggerService": debugger, "ModelService": model}
    endpoints |= workbench_endpoints(services, calls, examples)
    routes = [Route(f"/{name}", calls.at(endpoint), methods=["POST"]) for name, endpoint in endpoints.items()]
    routes.append(Route("/openapi.json", _constant(openapi_document(server_version))))
    routes += page_routes(_constant({"name": "transformer-debugger", "documentation": "/openapi.json"}))
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


async def _no_such_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return not_found(request, detail) if status == 404 else JSONResponse({"message": detail}, status)

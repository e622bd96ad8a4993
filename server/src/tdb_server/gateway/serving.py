"""Puts the gateway in front of the service, inside the same process."""

from __future__ import annotations

from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, ModelInfo
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    InferResponse,
)

from tdb_server.gateway.app import Backend, create_gateway
from tdb_server.gateway.http_guard import HttpGuard
from tdb_server.gateway.http_server import HttpServer
from tdb_server.service.app import Parts
from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.probes import Probes

MAX_RESPONSE_BYTES = 256 * 2**20
"""HTTP clients have no streaming call to turn to, and no 4 MiB limit of their own."""


def http_server(parts: Parts) -> HttpServer:
    """The gateway as a server on the settings' HTTP port."""
    settings = parts.settings
    debugger = DebuggerService(parts.calls, MAX_RESPONSE_BYTES)

    async def debug(request: DebugRequest) -> DebugResponse:
        return await debugger.Debug(request, None)

    async def infer(request: InferRequest) -> InferResponse:
        return await debugger.Infer(request, None)

    async def model_info() -> ModelInfo:
        return (await parts.model.GetModelInfo(GetModelInfoRequest(), None)).model_info

    guard = HttpGuard(
        settings.limits, parts.open_calls, parts.access, parts.listeners, settings.telemetry.log_prompts
    )
    gateway = create_gateway(Backend(debug, infer, model_info), guard, parts.version)
    application = Probes(gateway, parts.is_ready)
    tls = None if parts.tls is None else parts.tls.context()
    return HttpServer(application, settings.host, settings.http_port or 0, settings.grace_seconds, tls)

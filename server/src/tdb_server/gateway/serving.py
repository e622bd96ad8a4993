"""Puts the gateway in front of the service, inside the same process."""

from __future__ import annotations

from functools import partial

from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, ModelInfo

from tdb_server.gateway.app import Backend, create_gateway
from tdb_server.gateway.http_calls import HttpCalls
from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.http.host_check import AllowedHosts
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.http.probes import Probes
from tdb_server.service.parts import Parts

RESPONSE_FACTOR = 8
"""Times `max_response_bytes`, as HTTP clients have no streaming call to turn to, nor a limit of their own."""


def http_server(parts: Parts) -> HttpListener:
    """The gateway as a server on the settings' HTTP port."""
    settings = parts.settings
    debugger = DebuggerService(parts.calls, RESPONSE_FACTOR * settings.limits.max_response_bytes)

    async def model_info() -> ModelInfo:
        return (await parts.model.GetModelInfo(GetModelInfoRequest(), None)).model_info

    backend = Backend(
        partial(debugger.Debug, context=None), partial(debugger.Infer, context=None), model_info
    )
    hosts = AllowedHosts(settings.host, settings.security.allowed_hosts)
    calls = HttpCalls(parts.guard, parts.threads, parts.memory, settings.security.max_body_seconds)
    gateway = create_gateway(backend, calls, hosts, parts.version)
    application = Probes(gateway, parts.is_ready)
    tls = None if parts.tls is None else parts.tls.context()
    return HttpListener(application, settings.host, settings.http_port or 0, settings.security, tls)

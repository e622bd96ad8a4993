"""The gRPC server: its services, and what stands around every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from transformer_debugger.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    transformer_debugger_service_pb2,
    transformer_debugger_service_pb2_grpc,
)

from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.grpc_calls import GrpcCalls
from tdb_server.service.listening import server_options
from tdb_server.service.self_description import REFLECTION_METHODS, add_channelz, add_reflection
from tdb_server.service.shared_services import SharedServices

if TYPE_CHECKING:  # generic for the type checker alone
    from tdb_server.service.handlers import Context

_DESCRIPTORS = (
    transformer_debugger_service_pb2.DESCRIPTOR.services_by_name["TransformerDebuggerService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
)
REQUESTS = {
    f"{descriptor.full_name}/{method.name}": method.input_type
    for descriptor in _DESCRIPTORS
    for method in descriptor.methods
}
"""What each method of ours reads, by its full name."""
OUR_SERVICES = tuple(descriptor.full_name for descriptor in _DESCRIPTORS)
KNOWN_METHODS = REFLECTION_METHODS | {
    f"{descriptor.full_name}/{method.name}"
    for descriptor in (*_DESCRIPTORS, health_pb2.DESCRIPTOR.services_by_name["Health"])
    for method in descriptor.methods
}
"""Full names of the methods that are worth telling apart when calls are counted."""


def grpc_server(
    shared: SharedServices,
    report_load: Callable[[Context], None] | None,
    health_servicer: health.aio.HealthServicer,
) -> grpc.aio.Server:
    """The server with all its services, which does not listen yet."""
    settings = shared.settings
    bound = settings.security.max_connections_per_address
    is_known = KNOWN_METHODS.__contains__
    calls = GrpcCalls(shared.guard, shared.threads, REQUESTS, is_known, bound, report_load)
    max_bytes = settings.limits.max_response_bytes
    debugger = DebuggerService(shared.calls, max_bytes, max_bytes)
    server = grpc.aio.server(interceptors=[calls], options=server_options(settings))
    transformer_debugger_service_pb2_grpc.add_TransformerDebuggerServiceServicer_to_server(debugger, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(shared.model, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        add_reflection(server, (*OUR_SERVICES, health.SERVICE_NAME))
    if settings.channelz:
        add_channelz(server)
    return server

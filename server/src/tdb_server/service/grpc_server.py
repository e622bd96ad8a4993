"""The gRPC server: its services, and what stands around every call."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from transformer_debugger.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    transformer_debugger_service_pb2,
    transformer_debugger_service_pb2_grpc,
)

from tdb_server.service.access.access import Access
from tdb_server.service.access.access_guard import AccessGuard
from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.interceptors import CallGuard, OpenCalls
from tdb_server.service.listening import server_options
from tdb_server.service.long_requests import LongRequests
from tdb_server.service.model_service import ModelService
from tdb_server.service.self_description import REFLECTION_METHODS, add_channelz, add_reflection
from tdb_server.service.telemetry.call_observer import CallObserver
from tdb_server.service.telemetry.call_record import CallListener
from tdb_server.settings import Settings

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
    settings: Settings,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    debugger: DebuggerService,
    model: ModelService,
    health_servicer: health.aio.HealthServicer,
) -> grpc.aio.Server:
    """The server with all its services, which does not listen yet."""
    server = grpc.aio.server(interceptors=interceptors, options=server_options(settings))
    transformer_debugger_service_pb2_grpc.add_TransformerDebuggerServiceServicer_to_server(debugger, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(model, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        add_reflection(server, (*OUR_SERVICES, health.SERVICE_NAME))
    if settings.channelz:
        add_channelz(server)
    return server


def interceptors(
    settings: Settings,
    access: Access,
    open_calls: OpenCalls,
    listeners: Sequence[CallListener],
    threads: FairThreads,
    load_reports: Sequence[grpc.aio.ServerInterceptor] = (),
) -> list[grpc.aio.ServerInterceptor]:
    """What stands around every call, the outermost first: the record, the token, limits and errors, reading.

    Load reports, where they are wanted, are for those with a token.
    """
    keeps_prompts = settings.telemetry.log_prompts
    return [
        CallObserver(listeners, KNOWN_METHODS.__contains__, keeps_prompts=keeps_prompts),
        AccessGuard(access),
        *load_reports,
        CallGuard(settings.limits, open_calls),
        LongRequests(REQUESTS, settings.limits, threads),
    ]

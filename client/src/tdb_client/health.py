"""The standard health service, which every server offers (grpc.health.v1)."""

from __future__ import annotations

from typing import Any, Literal, cast

import grpc

HealthStatus = Literal["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]


def health_check(channel: grpc.Channel | grpc.aio.Channel) -> Any:  # what it returns depends on the channel
    """The method that asks for health."""
    from grpc_health.v1.health_pb2_grpc import HealthStub  # type: ignore[import-untyped]  # needed here only

    return HealthStub(channel).Check


def health_request(service: str) -> Any:  # the package has no types
    """The message that asks for the health of a service by full name, or of the whole server by none."""
    from grpc_health.v1.health_pb2 import HealthCheckRequest  # type: ignore[import-untyped]

    return HealthCheckRequest(service=service)


def health_status(response: Any) -> HealthStatus:
    """The answer."""
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    return cast(HealthStatus, HealthCheckResponse.ServingStatus.Name(response.status))

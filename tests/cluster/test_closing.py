"""In the moment in which a front closes its port gRPC answers CANCELLED, and Envoy asks another front."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest
from transformer_debugger.v1.model_service_pb2_grpc import (
    ModelServiceServicer,
    ModelServiceStub,
    add_ModelServiceServicer_to_server,
)

from tests.cluster.envoy import running_envoy
from tests.cluster.fronts import SERVICE
from tests.cluster.ways import Cluster

N_CALLS = 10


class ClosingFront(ModelServiceServicer):
    """Cancels every call."""

    def __init__(self) -> None:
        self.n_cancelled = 0

    def GetModelInfo(self, _: GetModelInfoRequest, context: grpc.ServicerContext) -> None:  # noqa: N802 - gRPC's name
        self.n_cancelled += 1
        context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")


def test_what_a_closing_front_cancels_is_asked_of_the_other(cluster: Cluster, tmp_path: Path) -> None:
    sound = cluster.fronts[0]
    with (
        running_closing_front() as (port, closing),
        running_envoy(
            tmp_path / "envoy", [sound, SimpleNamespace(port=port, http_port=sound.http_port)]
        ) as envoy,
        grpc.insecure_channel(f"127.0.0.1:{envoy.port}") as channel,
    ):
        stub = ModelServiceStub(channel)
        names = {stub.GetModelInfo(GetModelInfoRequest(), timeout=30).model_info.name for _ in range(N_CALLS)}
    assert closing.n_cancelled > 0, "it was never asked"
    assert len(names) == 1


@contextmanager
def running_closing_front() -> Iterator[tuple[int, ClosingFront]]:
    """Its port, and what it counts. It says that it serves."""
    server = grpc.server(ThreadPoolExecutor(4))
    health = HealthServicer()
    health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port, front = server.add_insecure_port("127.0.0.1:0"), ClosingFront()
    add_ModelServiceServicer_to_server(front, server)
    server.start()
    yield port, front
    server.stop(None)

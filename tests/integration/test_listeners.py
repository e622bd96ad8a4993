"""All ports of a real server under connections that dawdle."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub

from tests.chaos.vitals import vitals, wait_until
from tests.running_server import RunningServer, StartServer, start, stop

N_CONNECTIONS = 30
JSON = "Content-Type: application/json\r\nContent-Length: 1000"
DAWDLING = {
    "http_port": [
        b"",
        b"POST /batched HTTP/1.1\r\nHost: localhost\r\nX-a: b",
        f"POST /batched HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\n\r\n{{".encode(),
        f"POST /batched HTTP/1.1\r\nHost: evil.example\r\n{JSON}\r\n\r\n{{".encode(),
    ],
    "metrics_port": [b"", b"GET /metrics HTTP/1.1\r\nHost"],
    "grpc_port": [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
}
QUICK = ("--max-head-seconds", "1", "--max-body-seconds", "1")
ALL_PORTS = ("--http-port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start(tmp_path_factory.mktemp("quick"), *ALL_PORTS, *QUICK)
    yield server
    stop(server)


def dawdle(port: int, sent: bytes, n: int = N_CONNECTIONS) -> list[socket.socket]:
    connections = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(n)]
    for one in connections:
        one.sendall(sent)
    return connections


def ports(server: RunningServer) -> dict[str, int]:
    found: dict[str, int] = json.loads(server.ready_file.read_text())
    return found


@pytest.mark.parametrize(
    ("port", "sent"), [(port, one) for port, all_sent in DAWDLING.items() for one in all_sent]
)
def test_connections_that_ask_for_nothing_are_ended(quick: RunningServer, port: str, sent: bytes) -> None:
    pid = quick.process.pid
    quick.model.Tokenize(TokenizeRequest(text="a"))
    n_threads, n_files = len(list(Path(f"/proc/{pid}/task").iterdir())), vitals(pid).n_open_files
    connections = dawdle(ports(quick)[port], sent)
    assert quick.model.Tokenize(TokenizeRequest(text="a"), timeout=10).token_ids
    assert httpx.get(f"http://127.0.0.1:{ports(quick)['metrics_port']}/metrics").status_code == 200
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) < n_threads + N_CONNECTIONS / 2
    wait_until(lambda: vitals(pid).n_open_files <= n_files + 2, seconds=20)
    for one in connections:
        one.close()


def test_stopping_does_not_wait_for_them(start_server: StartServer) -> None:
    server = start_server(*ALL_PORTS, "--grace-seconds", "60")
    dawdling = [
        one
        for port, all_sent in DAWDLING.items()
        for sent in all_sent
        for one in dawdle(ports(server)[port], sent, 5)
    ]
    began_at = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - began_at < 20
    for one in dawdling:
        one.close()


def test_names_that_metrics_and_json_answer_to(start_server: StartServer) -> None:
    server = start_server(*ALL_PORTS, "--allowed-hosts", "tdb.example")
    for name in ("http_port", "metrics_port"):
        url = f"http://127.0.0.1:{ports(server)[name]}/"
        statuses = {
            host: httpx.get(url, headers={"host": host}).status_code
            for host in ("tdb.example", "tdb.example:80", "localhost", "evil.example")
        }
        assert statuses == {"tdb.example": 200, "tdb.example:80": 200, "localhost": 200, "evil.example": 421}
        assert httpx.get(url, headers={"origin": "http://evil.example"}).status_code == 403
        for probe in ("livez", "readyz"):  # which Kubernetes asks by the pod's address
            assert httpx.get(url + probe, headers={"host": "10.1.2.3"}).text == "ok\n"


def test_grpc_calls_of_one_address_are_bounded(start_server: StartServer) -> None:
    """Of whatever kind, and over however many connections."""
    server = start_server("--max-connections-per-address", "3")
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.port}", own) for _ in range(4)]
    watches = [health_pb2_grpc.HealthStub(one).Watch(health_pb2.HealthCheckRequest()) for one in channels[:3]]
    for one in watches:
        next(one)
    for call in (
        lambda: health_pb2_grpc.HealthStub(channels[3]).Check(health_pb2.HealthCheckRequest()),
        lambda: ModelServiceStub(channels[3]).Tokenize(TokenizeRequest(text="a")),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()

    def is_answered() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(server.model.Tokenize(TokenizeRequest(text="a")).token_ids)
        return False

    wait_until(is_answered, seconds=10)
    for one in channels:
        one.close()

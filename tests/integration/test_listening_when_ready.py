"""Ports that stay closed until the model is loaded: balancers without health checks try another server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

MODEL = Path(__file__).parents[1] / "fixtures" / "tiny-a"


@contextmanager
def starting(port: int, ready_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["serve", "--model", str(MODEL), "--port", str(port), "--listen-when-ready"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tdb_server", *arguments, "--ready-file", str(ready_file)],
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_port_opens_with_the_model(tmp_path: Path) -> None:
    port, ready_file = free_port(), tmp_path / "ready.json"
    with starting(port, ready_file) as process:
        n_closed = 0
        while not is_open(port):
            assert not ready_file.exists()
            assert process.poll() is None
            n_closed += 1
            time.sleep(0.01)
        assert n_closed > 10  # it takes a while to load a model
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        while not ready_file.exists():
            time.sleep(0.01)
        assert json.loads(ready_file.read_text())["grpc_port"] == port
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_it_can_be_stopped_before(tmp_path: Path) -> None:
    port = free_port()
    with starting(port, tmp_path / "ready.json") as process:
        assert process.stderr is not None
        assert b"loading" in process.stderr.readline()
        process.terminate()
        assert process.wait(timeout=20) == 0
        assert not is_open(port)


def test_a_port_in_use_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with starting(taken.getsockname()[1], tmp_path / "ready.json") as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert b"cannot listen on" in said.splitlines()[-1]

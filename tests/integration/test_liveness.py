"""A server says that it lives, and goes on although a worker hangs and nobody reads its log."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, TokenizeRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub

from tests.integration.tokens import TOKENS, write_tokens
from tests.running_server import TINY_MODEL

PATIENCE_SECONDS = 90
N_LOGGED = 400
"""Calls, of each of which there is a line: more than a pipe holds."""


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def systemd(tmp_path, monkeypatch) -> Iterator[list[bytes]]:
    """What is told to the manager that a server believes to have."""
    told: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)

        def listen() -> None:
            while (word := manager.recv(100)) != b"end":
                told.append(word)

        listening = threading.Thread(target=listen)
        listening.start()
        yield told
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(tmp_path / "notify"))
        listening.join()


def test_probes_and_systemd_follow_the_workers(systemd, start_server, debug_request):
    server = start_server("--http-port", "0", "--worker-silence-seconds", "3", "--cache-bytes", "0")
    assert systemd[0] == b"WATCHDOG=1"  # while it loads, too
    until(lambda: b"READY=1" in systemd)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}") as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        answer = server.debugger.Debug(debug_request(), timeout=PATIENCE_SECONDS)
        assert len(answer.sub_responses) == 1
        (another,) = server.worker_pids()
        assert another != worker
        os.kill(another, signal.SIGKILL)
        until(lambda: client.get("/readyz").status_code == 503)
        assert client.get("/livez").status_code == 200
        until(lambda: client.get("/readyz").status_code == 200)
    assert b"STOPPING=1" not in systemd
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_SECONDS) == 0
    assert b"STOPPING=1" in systemd


def test_a_token_file_that_is_removed_revokes_and_hangups_kill_nobody(start_server, refusal, tmp_path):
    path = tmp_path / "tokens.toml"
    write_tokens(path, "alice")
    server = start_server("--token-file", str(path))
    metadata = (("authorization", f"Bearer {TOKENS['alice']}"),)

    def ask() -> object:
        return server.model.GetModelInfo(GetModelInfoRequest(), metadata=metadata, timeout=30)

    assert ask()
    path.unlink()
    until(lambda: "is gone" in server.log.read_text())
    assert refusal(ask).info.reason == "UNAUTHENTICATED"
    os.mkfifo(path)  # would block whoever opens it
    until(lambda: "not a regular file" in server.log.read_text())
    assert refusal(ask).info.reason == "UNAUTHENTICATED"
    path.unlink()
    write_tokens(path, "alice")
    until(lambda: "1 tokens are in force" in server.log.read_text())
    assert ask()


def test_nobody_reads_the_log(tmp_path):
    """A pipe that is full from the start: calls and health are answered, and the server stops in time."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    ready = tmp_path / "ready.json"
    arguments = ["serve", "--port", "0", "--ready-file", str(ready), "--model", str(TINY_MODEL)]
    process = subprocess.Popen([sys.executable, "-m", "tdb_server", *arguments], stderr=writer)
    try:
        os.close(writer)
        until(ready.exists)
        address = f"127.0.0.1:{json.loads(ready.read_text())['grpc_port']}"
        with grpc.insecure_channel(address) as channel:
            for _ in range(N_LOGGED):
                assert ModelServiceStub(channel).Tokenize(TokenizeRequest(text="a"), timeout=30).token_ids
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)

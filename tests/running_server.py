"""A real server in a process of its own, on a free port, with flags of the test's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.vitals import title

TINY_MODEL = Path(__file__).parent / "fixtures" / "tiny-a"
START_SECONDS = 180.0


@dataclass
class RunningServer:
    """A server process that was ready once."""

    process: subprocess.Popen[bytes]
    ready_file: Path
    port: int
    http_port: int | None
    log: Path
    channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        options = [("grpc.max_receive_message_length", 64 * 2**20), ("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options)

    @property
    def debugger(self) -> TransformerDebuggerServiceStub:
        return TransformerDebuggerServiceStub(self.channel)

    @property
    def model(self) -> ModelServiceStub:
        return ModelServiceStub(self.channel)

    def worker_pids(self) -> list[int]:
        """The children of the server whose title says that they are workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"tdb-worker" in title(int(pid))]

    def terminate(self) -> int:
        """SIGTERM, then the exit code."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


StartServer = Callable[..., RunningServer]


def as_it_is(command: list[str]) -> list[str]:
    """Nothing around a command."""
    return command


def start(
    folder: Path,
    *flags: str,
    model: Path | None = TINY_MODEL,
    around: Callable[[list[str]], list[str]] = as_it_is,
    environment: Mapping[str, str] = os.environ,
) -> RunningServer:
    """Starts a server and waits until it is ready.

    Args:
        folder: for its log and its ready file.
        flags: more flags.
        model: None for the default one.
        around: makes of its command one that becomes the same process.
        environment: of the process.
    """
    ready_file, log = folder / "ready.json", folder / "server.log"
    arguments = ["serve", "--port", "0", "--ready-file", str(ready_file), "--device", "cpu"]
    if model is not None:
        arguments += ["--model", str(model)]
    with log.open("wb") as stderr:
        command = around([sys.executable, "-m", "tdb_server", *arguments, *flags])
        process = subprocess.Popen(command, stderr=stderr, env=environment)
    deadline = time.monotonic() + START_SECONDS
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail(f"the server did not get ready:\n{log.read_text()}")
        time.sleep(0.02)
    ports = json.loads(ready_file.read_text())
    return RunningServer(process, ready_file, ports["grpc_port"], ports.get("http_port"), log)


def stop(server: RunningServer) -> None:
    server.channel.close()
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()

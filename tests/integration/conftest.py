"""A real server on a free port, with flags of the test's choice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, DebugSubRequest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

TINY_MODEL = Path(__file__).parents[1] / "fixtures" / "tiny-a"
START_SECONDS = 60.0


@dataclass
class RunningServer:
    """A server process that was ready once."""

    process: subprocess.Popen[bytes]
    ready_file: Path
    port: int
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
        return [int(pid) for pid in children if b"tdb-worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def terminate(self) -> int:
        """SIGTERM, then the exit code."""
        self.channel.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


StartServer = Callable[..., RunningServer]


def start(folder: Path, *flags: str, model: Path = TINY_MODEL) -> RunningServer:
    ready_file, log = folder / "ready.json", folder / "server.log"
    arguments = [
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        "--ready-file",
        str(ready_file),
        "--device",
        "cpu",
    ]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tdb_server", *arguments, *flags], stderr=stderr, env=os.environ
        )
    deadline = time.monotonic() + START_SECONDS
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            pytest.fail(f"the server did not get ready:\n{log.read_text()}")
        time.sleep(0.02)
    return RunningServer(process, ready_file, json.loads(ready_file.read_text())["grpc_port"], log)


def stop(server: RunningServer) -> None:
    server.channel.close()
    if server.process.poll() is None:
        server.process.terminate()
        try:
            server.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that tests share and leave as they found it."""
    shared = start(tmp_path_factory.mktemp("server"))
    yield shared
    stop(shared)


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts servers that are stopped after the test."""
    started: list[RunningServer] = []

    def start_one(*flags: str, model: Path = TINY_MODEL) -> RunningServer:
        started.append(start(tmp_path_factory.mktemp("server"), *flags, model=model))
        return started[-1]

    yield start_one
    for one in started:
        stop(one)


@pytest.fixture
def debug_request() -> Callable[..., DebugRequest]:
    """Makes small debug requests."""

    def make(prompt: str = "the cat sat on the", n_sub_requests: int = 1, k: int = 5) -> DebugRequest:
        one = DebugSubRequest(prompt=prompt, target_tokens=[" the"], top_and_bottom_k=k)
        return DebugRequest(sub_requests=[one] * n_sub_requests)

    return make


@dataclass(frozen=True)
class Refusal:
    """A failed call: the code, and the details that came with it."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest
    retry_seconds: float | None


@pytest.fixture
def refusal() -> Callable[[Callable[[], object]], Refusal]:
    """Runs a call that must fail, and reads its rich status."""

    def run(call: Callable[[], object]) -> Refusal:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return read_refusal(caught.value)

    return run


def read_refusal(error: grpc.RpcError) -> Refusal:
    details = {
        key: value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"
    }
    status = status_pb2.Status.FromString(details.get("grpc-status-details-bin", b""))
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    )  # fmt: skip
    found = [_unpack(one, info, bad_request, retry) for one in status.details]
    seconds = retry.retry_delay.ToNanoseconds() / 1e9 if retry in found else None
    return Refusal(error.code(), error.details() or "", info, bad_request, seconds)


def _unpack(packed: any_pb2.Any, *kinds: object) -> object:
    return next((kind for kind in kinds if packed.Unpack(kind)), None)

"""Real servers, and what is said when a call fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, DebugSubRequest

from tests.integration.tokens import TOKENS, write_tokens
from tests.running_server import TINY_MODEL, RunningServer, StartServer, start, stop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that tests share and leave as they found it."""
    shared = start(tmp_path_factory.mktemp("server"), "--cache-bytes", "0")
    yield shared
    stop(shared)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The default model, which takes long to load, for all tests of it."""
    server = start(tmp_path_factory.mktemp("smollm2"), "--http-port", "0", model=None)
    yield server
    stop(server)


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with everybody's token."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    write_tokens(path, *TOKENS)
    return path


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, token_file: Path) -> Iterator[RunningServer]:
    """A server that asks for tokens, and keeps no results."""
    flags = ("--token-file", str(token_file), "--http-port", "0", "--cache-bytes", "0")
    server = start(tmp_path_factory.mktemp("guarded"), *flags)
    yield server
    stop(server)


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

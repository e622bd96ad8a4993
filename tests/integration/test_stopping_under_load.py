"""A server that stops while callers never pause.

With another server there, none of their calls fails. With none, every one is answered or told UNAVAILABLE.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from tdb_client.connection import Connection
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub

from tests.chaos.refused import refused
from tests.running_server import start, stop

N_CALLERS = 16
LOAD_SECONDS = 0.5


def test_no_call_fails(tmp_path: Path) -> None:
    servers = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        servers.append(start(tmp_path / name))
    target = "ipv4:" + ",".join(f"127.0.0.1:{server.port}" for server in servers)
    outcomes: Counter[str] = Counter()
    stopped = threading.Event()

    def keep_calling() -> None:
        with Connection(target).open() as channel:
            model = ModelServiceStub(channel)
            while not stopped.is_set():
                try:
                    model.Tokenize(TokenizeRequest(text="the cat"), timeout=30)
                except grpc.RpcError as error:
                    outcomes[error.code().name] += 1
                else:
                    outcomes["answered"] += 1

    try:
        with ThreadPoolExecutor(N_CALLERS) as callers:
            running = [callers.submit(keep_calling) for _ in range(N_CALLERS)]
            try:
                time.sleep(LOAD_SECONDS)
                assert servers[0].terminate() == 0
                time.sleep(LOAD_SECONDS)
            finally:
                stopped.set()
            for one in running:
                one.result()
    finally:
        for server in servers:
            stop(server)
    assert set(outcomes) == {"answered"}
    assert outcomes["answered"] > N_CALLERS


def test_whoever_goes_on_calling_is_told_unavailable(tmp_path: Path) -> None:
    """Callers who watch nothing and repeat nothing: first the server says why, then its port is closed."""
    server = start(tmp_path)
    outcomes: Counter[tuple[str, str]] = Counter()

    def call_until_it_is_gone() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.enable_retries", 0)]) as channel:
            model = ModelServiceStub(channel)
            while True:
                has_ended = server.process.poll() is not None
                try:
                    model.Tokenize(TokenizeRequest(text="the cat"), timeout=30)
                except grpc.RpcError as error:
                    why = refused(error)
                    outcomes[why.code.name, why.reason] += 1
                    if has_ended:
                        return
                else:
                    outcomes["OK", ""] += 1

    try:
        with ThreadPoolExecutor(N_CALLERS) as callers:
            running = [callers.submit(call_until_it_is_gone) for _ in range(N_CALLERS)]
            time.sleep(LOAD_SECONDS)
            assert server.terminate() == 0
            for one in running:
                one.result()
    finally:
        stop(server)
    assert set(outcomes) == {("OK", ""), ("UNAVAILABLE", "SHUTTING_DOWN"), ("UNAVAILABLE", "")}

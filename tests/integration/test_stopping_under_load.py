"""A server that stops while callers never pause: none of their calls fails, as another server is there."""

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

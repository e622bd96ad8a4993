"""Heavy bodies and answers over HTTP take little of the front's memory, and hold nobody else up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest

from tests.chaos.vitals import vitals

MIB = 2**20
BODY_BYTES = 4 * MIB - 2000
HEADERS = {"content-type": "application/json"}
BODIES = {
    "objects": b'{"subRequests":[' + b",".join([b"{}"] * (BODY_BYTES // 3)) + b"]}",
    "texts": b'{"subRequests":[{"targetTokens":[' + b",".join([b'""'] * (BODY_BYTES // 3)) + b"]}]}",
    "lists": b'{"x":[' + b",".join([b"[]"] * (BODY_BYTES // 3)) + b"]}",
    "as many as may be": b'{"subRequests":[' + b",".join([b"{}"] * 130_000) + b"]}",
    "digits": b'{"x":[' + b",".join([b"9" * 4299] * (BODY_BYTES // 4300)) + b"]}",
    "depth": b"[" * BODY_BYTES,
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(BODY_BYTES // 12)) + b"}",
}
N_AT_ONCE = 6
MAX_MEMORY_BYTES = 512 * MIB


@contextmanager
def within_memory(pid: int) -> Iterator[None]:
    peak, is_over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, vitals(pid).anonymous_bytes)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()
    print(f"\nat most {peak / MIB:.0f} MiB")
    assert peak < MAX_MEMORY_BYTES


@pytest.mark.parametrize("name", BODIES)
def test_bodies(watched, name):
    url = f"http://127.0.0.1:{watched.http_port}/batched_tdb"

    def post(_: int) -> int:
        return httpx.post(url, content=BODIES[name], headers=HEADERS, timeout=60).status_code

    with within_memory(watched.process.pid), ThreadPoolExecutor(N_AT_ONCE) as callers:
        statuses = callers.map(post, range(N_AT_ONCE))
        assert watched.model.Tokenize(TokenizeRequest(text="a"), timeout=10).token_ids
        assert set(statuses) <= {400, 413, 429}


def test_answers(watched):
    one = {"prompt": " the" * 40, "targetTokens": [" the"], "topAndBottomKForNodeTable": 400}
    body = {"subRequests": [one] * 2}
    url = f"http://127.0.0.1:{watched.http_port}/batched_tdb"

    def post(_: int) -> int:
        """Reads slowly, so that the answers are in the server at the same time."""
        n_bytes, content = 0, []
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            assert response.status_code == 200
            for chunk in response.iter_raw(MIB):
                content.append(chunk)
                n_bytes += len(chunk)
                time.sleep(0.01)
        assert len(json.loads(b"".join(content))["inferenceSubResponses"]) == 2
        return n_bytes

    with within_memory(watched.process.pid), ThreadPoolExecutor(2) as callers:
        sizes = list(callers.map(post, range(2)))
    assert min(sizes) > 2 * MIB

"""The JSON API under the same ill treatment: refused with a reason, never a fault of the server."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.chaos.hostile_bodies import golden_bodies, hostile_body

ALLOWED = {200, 400, 404, 405, 413, 429}
HEADERS = {"content-type": "application/json"}
N_AT_ONCE = 4
SECONDS = 60.0


@pytest.fixture
def http(watched):
    with httpx.Client(
        base_url=f"http://127.0.0.1:{watched.http_port}", timeout=SECONDS, headers=HEADERS
    ) as client:
        yield client


def test_never_a_fault_of_the_server(watched, http, extent):
    pids = watched.process.pid, watched.worker_pids()
    goldens = golden_bodies()
    sent = [hostile_body(random.Random(number), goldens) for number in range(extent.n_hostile_bodies)]
    with ThreadPoolExecutor(N_AT_ONCE) as callers:
        answers = list(callers.map(lambda one: http.post(f"/{one[0]}", content=one[1]), sent))

    statuses = Counter(answer.status_code for answer in answers)
    print(f"\n{len(sent)} hostile bodies: {dict(sorted(statuses.items()))}")
    faults = [
        (path, body[:300], answer.status_code, answer.text[:300])
        for (path, body), answer in zip(sent, answers, strict=True)
        if answer.status_code not in ALLOWED
    ]
    assert faults == []
    assert all(answer.json()["message"] for answer in answers if answer.status_code >= 400)
    assert (watched.process.pid, watched.worker_pids()) == pids
    path, body = next(one for one in goldens if one[0] == "batched_tdb")
    assert http.post(f"/{path}", json=body).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_other_methods(http, method):
    assert http.request(method, "/batched_tdb", content=b"{}").status_code in (400, 405)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-protobuf"},
        {"content-encoding": "gzip"},
        {"content-length": "-1"},
        {"transfer-encoding": "chunked"},
        {"expect": "100-continue"},
        {"origin": "http://evil.example"},
        {"x-large": "x" * 70_000},
    ],
)
def test_headers_of_all_sorts(http, headers):
    """Where headers and body contradict each other, closing the connection will do."""
    try:
        status = http.post("/batched_tdb", content=b"{}" * 10, headers=headers).status_code
    except httpx.HTTPError:
        status = None
    assert status in {None, 400, 403, 413, 415, 431}
    assert http.get("/").status_code == 200


def test_a_body_that_is_too_large(http):
    assert http.post("/batched_tdb", content=b" " * 20 * 2**20).status_code == 413

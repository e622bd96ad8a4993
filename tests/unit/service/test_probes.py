from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tdb_server.service.probes import Probes


@pytest.fixture
def ready() -> list[bool]:
    return [False]


@pytest.fixture
def client(ready) -> TestClient:
    return TestClient(Probes(Starlette(), lambda: ready[0]))


def test_alive_is_not_ready(client, ready):
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 503
    ready[0] = True
    answer = client.get("/readyz")
    assert (answer.status_code, answer.text) == (200, "ok\n")
    assert answer.headers["cache-control"] == "no-store"


def test_heads_have_no_body_and_nothing_else_is_answered(client):
    assert client.head("/livez").text == ""
    assert client.head("/livez").status_code == 200
    assert client.post("/livez").status_code == 405
    assert client.get("/livez/").status_code == 404
    assert client.get("/other").status_code == 404

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from tdb_server.domain.budget import Budget
from tdb_server.domain.caller import CallerLimits
from tdb_server.domain.limits import Limits
from tdb_server.gateway.http_calls import Answer, Endpoint, HttpCalls
from tdb_server.service.access.access import Access
from tdb_server.service.access.token import new_token, token_entry
from tdb_server.service.access.token_file import TokenFile
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.caller import current_caller
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.open_calls import OpenCalls
from tdb_server.service.telemetry.call_record import CallRecord

MEMORY = Budget(2**20, "bodies", "BUFFERS_FULL")
TOKEN = new_token()
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def _as_it_is(body: Any) -> Any:
    return body


class Listener:
    def __init__(self) -> None:
        self.records: list[CallRecord] = []

    def call_started(self, record: CallRecord) -> None:
        assert record.status == "OK"

    def call_finished(self, record: CallRecord) -> None:
        self.records.append(record)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def client(tmp_path: Path, listener: Listener) -> httpx.AsyncClient:
    """Of an endpoint that answers with its caller's name, for a caller with one call a minute."""
    path = tmp_path / "tokens.toml"
    path.write_text(token_entry("alice", TOKEN, CallerLimits(calls_per_minute=1)))
    guard = CallGuard(Limits(), OpenCalls(), Access(TokenFile(path)), (listener,))

    async def answer(body: Any) -> Answer:
        return Answer({"caller": current_caller().name, "body": body})

    endpoint = HttpCalls(guard, FairThreads(MEMORY), MEMORY, max_body_seconds=5.0).at(
        Endpoint(_as_it_is, answer)
    )
    application = Starlette(routes=[Route("/who", endpoint, methods=["POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://test")


async def test_callers_are_told_by_their_token(client, listener):
    response = await client.post("/who", json=[1], headers=HEADERS)
    assert response.json() == {"caller": "alice", "body": [1]}
    (record,) = listener.records
    assert (record.method, record.is_http, record.http_status) == ("POST /who", True, 200)
    assert (record.caller, record.status, record.reason) == ("alice", "OK", "")
    assert (record.received_bytes, record.sent_bytes) == (3, len(response.content))


async def test_no_token(client, listener):
    response = await client.post("/who", content=b"{")
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    (record,) = listener.records
    assert (record.status, record.reason, record.caller) == ("UNAUTHENTICATED", "UNAUTHENTICATED", "")
    assert record.received_bytes == 0


async def test_over_the_limit_of_a_token(client, listener):
    await client.post("/who", json=[], headers=HEADERS)
    response = await client.post("/who", json=[], headers=HEADERS)
    assert response.status_code == 429
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert listener.records[-1].reason == "TOO_MANY_CALLS_PER_MINUTE"


async def test_the_trace_of_the_caller(client, listener):
    headers = {**HEADERS, "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    await client.post("/who", json=[], headers=headers)
    assert listener.records[0].traceparent == headers["traceparent"]

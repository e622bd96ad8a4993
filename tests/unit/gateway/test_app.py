"""The HTTP application over a stand-in for the service: ways in, ways out, and ways to fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from tdb_server import errors
from tdb_server.domain.budget import Budget
from tdb_server.domain.limits import Limits
from tdb_server.errors import FieldViolation, TdbError
from tdb_server.gateway.app import create_gateway
from tdb_server.gateway.http_calls import HttpCalls
from tdb_server.security_settings import Security
from tdb_server.service.call_guard import CallGuard
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.http.host_check import AllowedHosts, HostCheck
from tdb_server.service.http.listener import HttpListener
from tdb_server.service.open_calls import OpenCalls
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP, PRIORITY_UNSPECIFIED
from transformer_debugger.v1.model_service_pb2 import GetModelInfoRequest, GetModelInfoResponse, ModelInfo
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceServicer
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    InferResponse,
)
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

LIMITS = replace(Limits(), max_request_bytes=2000, max_call_seconds=5.0)
VIOLATION = FieldViolation("sub_requests[0].prompt", "is empty", "EMPTY_PROMPT")
Client = httpx.AsyncClient
JSON = {"content-type": "application/json"}


class StandIn(TransformerDebuggerServiceServicer, ModelServiceServicer):
    """Answers with the prompt's text as its only token, or raises what it was told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.priorities: list[int] = []
        self.delay_seconds = 0.0
        self.cancelled = asyncio.Event()
        self.has_begun = asyncio.Event()

    async def Debug(self, request: DebugRequest, context: Any) -> DebugResponse:  # noqa: N802
        self.priorities.append(request.priority)
        self.has_begun.set()
        try:
            await asyncio.sleep(self.delay_seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        response = DebugResponse()
        for one in request.sub_requests:
            response.sub_responses.add(token_strings=[one.prompt])
        return response

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        self.priorities.append(request.priority)
        response = InferResponse()
        for one in request.sub_requests:
            sub_response = response.sub_responses.add(token_strings=[one.inference_spec.prompt])
            for spec in one.processing_specs:
                sub_response.results.add(name=spec.name).scored_tokens.SetInParent()
        return response

    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:  # noqa: N802
        return GetModelInfoResponse(model_info=ModelInfo(name="stand-in", n_layers=2))


@pytest.fixture
def backend() -> StandIn:
    return StandIn()


@pytest.fixture
def open_calls() -> OpenCalls:
    return OpenCalls()


def gateway(backend: StandIn, open_calls: OpenCalls, limits: Limits = LIMITS) -> HostCheck:
    memory = Budget(256 * 2**20, "bodies", "BUFFERS_FULL")
    calls = HttpCalls(CallGuard(limits, open_calls), FairThreads(memory), memory, max_body_seconds=0.5)
    hosts = AllowedHosts("127.0.0.1", ["test"])
    return create_gateway(backend, backend, calls, hosts, "1.2.3")


@pytest.fixture
async def client(backend: StandIn, open_calls: OpenCalls) -> AsyncIterator[Client]:
    application = gateway(backend, open_calls)
    async with Client(transport=httpx.ASGITransport(application), base_url="http://test") as one:
        yield one


def debug_body(prompt: str = "Hi") -> dict[str, Any]:
    return {"subRequests": [{"prompt": prompt}]}


def tokens(inference: dict[str, Any]) -> list[str]:
    found: list[str] = inference["inferenceAndTokenData"]["tokensAsStrings"]
    return found


async def test_batched_tdb(client: Client) -> None:
    response = await client.post("/batched_tdb", json=debug_body("Grüße"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    (one,) = response.json()["inferenceSubResponses"]
    assert tokens(one["inferenceResponse"]) == ["Grüße"]


async def test_batched(client: Client) -> None:
    spec = {"numTokensAttendedTo": 1, "dependsOnSpecName": "b"}
    body = {
        "inferenceSubRequests": [
            {"inferenceRequestSpec": {"prompt": "Hi"}, "processingRequestSpecByName": {"a": spec}}
        ]
    }
    (one,) = (await client.post("/batched", json=body)).json()["inferenceSubResponses"]
    assert list(one["processingResponseDataByName"]) == ["a"]


@pytest.mark.parametrize(
    "endpoint", ["derived_scalars", "derived_attention_scalars", "multiple_top_k_derived_scalars"]
)
async def test_endpoints_of_one_spec(client: Client, endpoint: str) -> None:
    words = endpoint.title().replace("_", "").replace("TopK", "TopK")
    key = words[0].lower() + words[1:]
    body = {"inferenceRequestSpec": {"prompt": "Hi"}, f"{key}RequestSpec": {"dst": "logits"}}
    found = (await client.post(f"/{endpoint}", json=body)).json()
    assert tokens(found) == ["Hi"]
    assert set(found) == {"inferenceAndTokenData", f"{key}ResponseData"}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("batched_tdb", debug_body()),
        ("batched", {"inferenceSubRequests": []}),
        ("derived_scalars", {"inferenceRequestSpec": {"prompt": "Hi"}}),
    ],
)
async def test_a_header_says_how_urgent_a_request_is(
    client: Client, backend: StandIn, endpoint: str, body: dict[str, Any]
) -> None:
    for told in ({}, {"tdb-priority": "interactive"}, {"Tdb-Priority": "sweep"}):
        await client.post(f"/{endpoint}", json=body, headers=told)
    assert backend.priorities == [PRIORITY_UNSPECIFIED, PRIORITY_INTERACTIVE, PRIORITY_SWEEP]


@pytest.mark.parametrize("told", [["urgent"], [""], ["sweep", "sweep"]])
async def test_priorities_that_are_none(client: Client, backend: StandIn, told: list[str]) -> None:
    headers = [("tdb-priority", one) for one in told]
    response = await client.post("/batched_tdb", json=debug_body(), headers=headers)
    assert response.status_code == 400
    assert response.json() == {"message": "tdb-priority: must be one of interactive, sweep"}
    assert backend.priorities == []


async def test_model_info_needs_no_body(client: Client) -> None:
    found = (await client.post("/model_info")).json()
    assert (found["modelName"], found["nLayers"]) == ("stand-in", 2)


async def test_the_pages_that_describe_it(client: Client) -> None:
    assert (await client.get("/")).status_code == 200
    document = (await client.get("/openapi.json")).json()
    assert document["info"]["version"] == "1.2.3"
    for path in document["paths"]:
        assert (await client.post(path, json={"subRequests": []})).status_code != 404
    assert len(document["paths"]) == 22


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest([VIOLATION]), 400),
        (errors.FailedPrecondition([VIOLATION]), 400),
        (errors.Unauthenticated("who?"), 401),
        (errors.PermissionDenied("not you"), 401),
        (errors.DeadlineExceeded("late"), 408),
        (errors.Cancelled("gone"), 408),
        (errors.OverLimit("too much", "COST_TOO_HIGH"), 413),
        (errors.OverLimit("busy", "QUEUE_FULL", 1.5), 429),
        (errors.Unavailable("loading", "NO_WORKER_READY", 1.0), 503),
        (errors.Internal("abc"), 500),
        (errors.ModelBroken("secret"), 500),
    ],
)
async def test_errors(client: Client, backend: StandIn, error: TdbError, status: int) -> None:
    backend.error = error
    response = await client.post("/batched_tdb", json=debug_body())
    assert response.status_code == status
    assert response.json() == {"message": error.message}
    retry_after = getattr(error, "retry_after_seconds", None)
    assert response.headers.get("retry-after") == (
        None if retry_after is None else str(-int(-retry_after // 1))
    )


async def test_who_cannot_stream_is_told_what_else_there_is(client: Client, backend: StandIn) -> None:
    backend.error = errors.ResponseTooLarge("the answer is too large", "StreamDebug")
    response = await client.post("/batched_tdb", json=debug_body())
    assert response.status_code == 413
    assert response.json()["message"] == (
        "the answer is too large; "
        "ask for fewer nodes or specs, or send fewer sub-requests at a time, or take StreamDebug over gRPC"
    )


async def test_faults_keep_their_insides(client: Client, backend: StandIn) -> None:
    backend.error = RuntimeError("secret")
    response = await client.post("/batched_tdb", json=debug_body())
    assert response.status_code == 500
    assert "internal error" in response.json()["message"]
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 1900, "body"),
        (b'{"subRequests": 3}', "subRequests: must be a list"),
        (b'{"subRequests": [{"prompt": 3}]}', r"subRequests[0].prompt: must be a string"),
    ],
)
async def test_bodies_that_cannot_be_read(client: Client, content: bytes, message: str) -> None:
    response = await client.post("/batched_tdb", content=content, headers=JSON)
    assert response.status_code == 400
    assert message in response.json()["message"]


async def test_bodies_that_are_too_large(client: Client) -> None:
    response = await client.post("/batched_tdb", json=debug_body("a" * 2000))
    assert response.status_code == 413
    assert "2000 bytes" in response.json()["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_bodies_that_pages_can_send_without_asking(client: Client, headers: dict[str, str]) -> None:
    response = await client.post("/batched_tdb", content=b"{}", headers=headers)
    assert response.status_code == 415


async def test_the_character_set_may_be_told(client: Client) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    content = json.dumps(debug_body()).encode()
    assert (await client.post("/batched_tdb", content=content, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"host": "evil.example"}, 421), ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403)],
)
async def test_other_sites(client: Client, backend: StandIn, headers: dict[str, str], status: int) -> None:
    for path in ("/batched_tdb", "/model_info", "/batched_tdb/", "/nothing"):
        response = await client.post(path, json=debug_body(), headers=headers)
        assert (response.status_code, list(response.json())) == (status, ["message"])
        assert "location" not in response.headers
    assert not backend.has_begun.is_set()


async def test_a_body_that_is_told_to_be_too_large_is_not_waited_for(client: Client) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    headers = {**JSON, "content-length": "2001"}
    assert (await client.post("/batched_tdb", content=never(), headers=headers)).status_code == 413


async def test_bodies_that_do_not_come(client: Client, open_calls: OpenCalls) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"{"
        await open_calls.drain(60.0)  # at once: what is not there yet is not waited for
        await asyncio.sleep(60)

    response = await client.post("/batched_tdb", content=half(), headers=JSON)
    assert (response.status_code, response.json()["message"]) == (408, "the body did not come within 0.5 s")


async def test_pages_that_are_not_there(client: Client) -> None:
    response = await client.get("/nothing")
    assert (response.status_code, response.json()) == (404, {"message": "Not Found"})
    assert (await client.get("/batched_tdb")).status_code == 405


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [("http://localhost:3000", True), ("http://127.0.0.1", True), ("http://localhost.evil.com", False)],
)
async def test_web_pages_of_this_machine_may_call(client: Client, origin: str, is_allowed: bool) -> None:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    response = await client.options("/batched_tdb", headers=headers)
    assert (response.headers.get("access-control-allow-origin") == origin) is is_allowed


async def test_calls_are_refused_while_the_server_stops(client: Client, open_calls: OpenCalls) -> None:
    await open_calls.drain(1.0)
    response = await client.post("/batched_tdb", json=debug_body())
    assert response.status_code == 503


async def test_calls_that_take_too_long(backend: StandIn, open_calls: OpenCalls) -> None:
    backend.delay_seconds = 60.0
    limits = replace(LIMITS, max_call_seconds=0.05)
    application = gateway(backend, open_calls, limits)
    async with Client(transport=httpx.ASGITransport(application), base_url="http://test") as one:
        response = await one.post("/batched_tdb", json=debug_body())
    assert response.status_code == 408
    assert backend.cancelled.is_set()


Serve = Callable[[], Awaitable[HttpListener]]


@pytest.fixture
async def server(backend: StandIn, open_calls: OpenCalls) -> AsyncIterator[HttpListener]:
    application = gateway(backend, open_calls, Limits())
    one = HttpListener(application, "127.0.0.1", 0, Security())
    await one.start()
    yield one
    await one.stop()


async def test_over_a_socket(server: HttpListener) -> None:
    async with Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        response = await client.post("/batched_tdb", json=debug_body())
    assert response.status_code == 200
    assert "server" not in response.headers
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_client_that_goes_away_cancels_its_call(server: HttpListener, backend: StandIn) -> None:
    backend.delay_seconds = 60.0
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    content = json.dumps(debug_body()).encode()
    head = "POST /batched_tdb HTTP/1.1\r\nHost: test\r\nContent-Type: application/json"
    writer.write(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    await asyncio.wait_for(backend.has_begun.wait(), 5)
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(backend.cancelled.wait(), 5)


async def test_large_answers_leave_in_pieces(server: HttpListener) -> None:
    prompts = [f"{n} " + "a" * 30_000 for n in range(60)]
    body = {"subRequests": [{"prompt": prompt} for prompt in prompts]}
    pieces = []
    async with (
        Client(base_url=f"http://127.0.0.1:{server.port}") as client,
        client.stream("POST", "/batched_tdb", json=body) as response,
    ):
        assert response.headers["transfer-encoding"] == "chunked"
        pieces = [piece async for piece in response.aiter_raw()]
    found = json.loads(b"".join(pieces))["inferenceSubResponses"]
    assert [tokens(one["inferenceResponse"]) for one in found] == [[prompt] for prompt in prompts]


async def test_an_answer_that_breaks_off_has_no_end(server: HttpListener, monkeypatch: Any) -> None:
    def breaking_off(*_: Any) -> dict[str, Any]:
        def rows() -> Any:
            yield "a" * 1_000_000
            raise RuntimeError("secret")

        return {"rows": rows()}

    monkeypatch.setattr("tdb_server.gateway.json_responses._inference", breaking_off)
    async with Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/batched_tdb", json=debug_body())


async def test_a_port_that_is_taken(server: HttpListener, backend: StandIn, open_calls: OpenCalls) -> None:
    application = gateway(backend, open_calls)
    with pytest.raises(OSError, match="in use"):
        await HttpListener(application, "127.0.0.1", server.port, Security()).start()

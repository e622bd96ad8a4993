"""Who gets in with which token, and what is looked at before it."""

from __future__ import annotations

import os
import signal

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tdb_client import AsyncClient, CallError, DebugSubRequest, UnauthenticatedError
from tdb_client.cli import main
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest

from tests.chaos.vitals import wait_until
from tests.integration.failing_starts import serve_and_fail
from tests.integration.tokens import TOKENS, bearer, client_of, write_tokens
from tests.running_server import RunningServer

LONG = " the" * 60
DEBUG = "/transformer_debugger.v1.TransformerDebuggerService/Debug"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Bearer ")],
        [("authorization", TOKENS["alice"])],
        [("authorization", f"Basic {TOKENS['alice']}")],
        bearer("alice") + bearer("alice"),
        [("token", TOKENS["alice"])],
    ],
    ids=["none", "wrong", "empty", "no scheme", "other scheme", "two", "elsewhere"],
)
def test_no_token_or_a_wrong_one(guarded, debug_request, refusal, metadata):
    for call in (
        lambda: guarded.debugger.Debug(debug_request(), metadata=metadata),
        lambda: list(guarded.debugger.StreamDebug(debug_request(), metadata=metadata)),
        lambda: guarded.model.Tokenize(TokenizeRequest(text="a"), metadata=metadata),
    ):
        failed = refusal(call)
        assert failed.code is grpc.StatusCode.UNAUTHENTICATED
        assert (failed.info.reason, failed.info.domain) == ("UNAUTHENTICATED", "transformer-debugger")


def test_nothing_of_the_request_is_looked_at_before_the_token(guarded, refusal):
    """The token is wrong and so is everything else: the bytes, the size, and the method."""
    for method, request in ((DEBUG, b"\xff" * 100), (DEBUG, b"\x00" * 3_000_000), ("/no.Such/Method", b"")):
        call = guarded.channel.unary_unary(method)
        failed = refusal(lambda call=call, request=request: call(request, timeout=10))
        assert failed.code is grpc.StatusCode.UNAUTHENTICATED
    allowed = guarded.channel.unary_unary(DEBUG)
    failed = refusal(lambda: allowed(b"\xff" * 100, metadata=bearer("alice")))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT


def test_refusing_needs_no_worker(guarded, debug_request, refusal):
    """Whoever has no token costs those who have one nothing: the worker here does not move."""
    (worker,) = guarded.worker_pids()
    os.kill(worker, signal.SIGSTOP)
    try:
        for _ in range(50):
            failed = refusal(lambda: guarded.debugger.Debug(debug_request(), timeout=30))
            assert failed.code is grpc.StatusCode.UNAUTHENTICATED
    finally:
        os.kill(worker, signal.SIGCONT)


def test_the_right_token(guarded, debug_request):
    assert guarded.debugger.Debug(debug_request(), metadata=bearer("alice")).sub_responses
    assert list(guarded.debugger.StreamDebug(debug_request(), metadata=bearer("bob")))
    upper = [("authorization", f"BEARER {TOKENS['alice']}")]
    assert guarded.model.Tokenize(TokenizeRequest(text="a"), metadata=upper).token_ids


def test_health_is_open_and_reflection_is_not(guarded, refusal):
    health = health_pb2_grpc.HealthStub(guarded.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    asks = [reflection_pb2.ServerReflectionRequest(list_services="")]
    assert refusal(lambda: list(stub.ServerReflectionInfo(iter(asks)))).code is (
        grpc.StatusCode.UNAUTHENTICATED
    )
    (listed,) = stub.ServerReflectionInfo(iter(asks), metadata=bearer("alice"))
    assert listed.list_services_response.service


def test_the_client(guarded, capsys, tmp_path, monkeypatch):
    request = DebugSubRequest.of("the cat sat on the", " the", " of")
    with client_of(guarded, "alice") as client:
        assert client.debug_many([request])[0].nodes
        assert client.health() == "SERVING"
    with client_of(guarded, None) as client, pytest.raises(UnauthenticatedError) as refused:
        client.debug_many([request])
    assert refused.value.reason == "UNAUTHENTICATED"
    server = ["--server", f"127.0.0.1:{guarded.port}"]
    (tmp_path / "token").write_text(TOKENS["alice"] + "\n")
    assert main([*server, "--token-file", str(tmp_path / "token"), "tokenize", "the"]) == 0
    assert main([*server, "tokenize", "the"]) != 0
    assert "carries no token" in capsys.readouterr().err


async def test_the_async_client(guarded):
    async with AsyncClient(f"127.0.0.1:{guarded.port}", token=TOKENS["alice"]) as client:
        assert (await client.tokenize("the")).token_ids
    async with AsyncClient(f"127.0.0.1:{guarded.port}", token="wrong") as client:
        with pytest.raises(UnauthenticatedError):
            await client.tokenize("the")


def test_the_gateway_asks_for_the_same_tokens(guarded):
    body = {"subRequests": [{"prompt": "the cat", "targetTokens": [" the"], "distractorTokens": []}]}
    url = f"http://127.0.0.1:{guarded.http_port}"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        refused = httpx.post(f"{url}/batched_tdb", content=b"{", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "message" in refused.json()
    headers = {"Authorization": f"Bearer {TOKENS['alice']}"}
    assert httpx.post(f"{url}/model_info", headers=headers).status_code == 200
    assert httpx.post(f"{url}/batched_tdb", json=body, headers=headers).status_code != 401
    assert httpx.get(url).status_code == 200


def test_tokens_change_without_a_restart(start_server, tmp_path):
    path = tmp_path / "tokens.toml"
    write_tokens(path, "alice")
    server = start_server("--token-file", str(path))
    assert outcome(server, "alice") == "OK"
    assert outcome(server, "bob") == "UNAUTHENTICATED"
    write_tokens(path, "bob")
    wait_until(lambda: outcome(server, "bob") == "OK", seconds=5)
    assert outcome(server, "alice") == "UNAUTHENTICATED"
    path.write_text("[[token")
    wait_until(
        lambda: outcome(server, "bob") == "OK" and "stay in force" in server.log.read_text(), seconds=5
    )
    write_tokens(path)
    wait_until(lambda: outcome(server, "bob") == "UNAUTHENTICATED", seconds=5)


def outcome(server: RunningServer, name: str) -> str:
    with client_of(server, name) as client:
        try:
            client.tokenize("the")
        except CallError as error:
            return error.status
    return "OK"


def test_a_token_file_that_makes_no_sense_ends_the_server(tmp_path):
    (tmp_path / "tokens.toml").write_text("[[token]]\nname = 'a'")
    ended = serve_and_fail("--token-file", str(tmp_path / "tokens.toml"))
    assert ended.returncode == 1
    assert "sha256" in ended.stderr

"""Who gets in: tokens and their limits, TLS, and what is open to other machines."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tdb_client import (
    AsyncClient,
    CallError,
    Client,
    DebugSubRequest,
    ResourceExhaustedError,
    Tls,
    UnauthenticatedError,
    UnreachableError,
)
from tdb_client.cli import main
from tdb_server.domain.caller import CallerLimits
from tdb_server.service.access.token import new_token, token_entry
from transformer_debugger.v1.model_service_pb2 import TokenizeRequest

from tests.running_server import RunningServer, start, stop

TOKENS = {name: new_token() for name in ("alice", "bob", "one", "two", "three", "few", "small")}
LIMITS = {
    "one": CallerLimits(max_concurrent_calls=2),
    "two": CallerLimits(max_concurrent_calls=2),
    "three": CallerLimits(max_concurrent_calls=2),
    "few": CallerLimits(calls_per_minute=20),
    "small": CallerLimits(max_activation_bytes=200_000),
}
LONG = " the" * 60
DEBUG = "/transformer_debugger.v1.TransformerDebuggerService/Debug"


def write_tokens(path: Path, *names: str) -> None:
    """Beside and renamed, as operators should."""
    entries = [token_entry(name, TOKENS[name], LIMITS.get(name, CallerLimits())) for name in names]
    beside = path.with_name(f".{path.name}")
    beside.write_text("\n".join(entries) or "token = []")
    beside.rename(path)


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    write_tokens(path, *TOKENS)
    return path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, token_file: Path) -> Iterator[RunningServer]:
    """A server that asks for tokens, and keeps no results."""
    flags = ("--token-file", str(token_file), "--http-port", "0", "--cache-bytes", "0")
    server = start(tmp_path_factory.mktemp("guarded"), *flags)
    yield server
    stop(server)


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[name]}")]


def client_of(server: RunningServer, name: str | None) -> Client:
    return Client(f"127.0.0.1:{server.port}", token=None if name is None else TOKENS[name], timeout=30)


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


def test_refusing_is_quick(guarded, debug_request):
    seconds = []
    for _ in range(50):
        begun_at = time.perf_counter()
        with pytest.raises(grpc.RpcError):
            guarded.debugger.Debug(debug_request())
        seconds.append(time.perf_counter() - begun_at)
    assert sorted(seconds)[25] < 0.02


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


def test_calls_at_the_same_time_under_load(guarded, debug_request):
    """Sixteen at once of one caller: never more than its two at a time, and another caller is not held up."""
    lock, n_open, most_open = threading.Lock(), 0, 0
    outcomes: Counter[str] = Counter()

    def one_call() -> None:
        nonlocal n_open, most_open
        request = debug_request(prompt=LONG, n_sub_requests=4, k=50)
        stream = guarded.debugger.StreamDebug(request, metadata=bearer("one"), timeout=60)
        try:
            assert next(stream).HasField("started")
            with lock:
                n_open += 1
                most_open = max(most_open, n_open)
            time.sleep(0.05)
            with lock:
                n_open -= 1
            list(stream)
            outcomes["OK"] += 1
        except grpc.RpcError as error:
            outcomes[error.code().name] += 1

    with ThreadPoolExecutor(16) as threads:
        calls = [threads.submit(one_call) for _ in range(48)]
        assert guarded.debugger.Debug(debug_request(), metadata=bearer("bob"), timeout=30).sub_responses
        for call in calls:
            call.result()
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert outcomes["OK"] >= 2
    assert most_open <= 2


def test_a_refusal_says_when_to_come_back(guarded, debug_request, refusal):
    request = debug_request(prompt=LONG, n_sub_requests=8, k=1000)
    streams = [guarded.debugger.StreamDebug(request, metadata=bearer("two")) for _ in range(3)]
    deadline = time.monotonic() + 10
    try:
        while not any(one.done() for one in streams):  # which of them comes last is not ours to say
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = next(one for one in streams if one.done())
        failed = refusal(refused.result)
        assert next(next(one for one in streams if one is not refused)).HasField("started")
    finally:
        for stream in streams:
            stream.cancel()
    assert (failed.code, failed.info.reason, failed.retry_seconds) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CONCURRENT_CALLS",
        1.0,
    )


def test_cancelled_calls_make_room(guarded, debug_request):
    request = debug_request(prompt=LONG, n_sub_requests=8, k=200)
    for _ in range(10):
        stream = guarded.debugger.StreamDebug(request, metadata=bearer("three"), timeout=30)
        next(stream)
        stream.cancel()
        deadline = time.monotonic() + 10
        while True:  # the server learns of it a moment later
            try:
                guarded.debugger.Debug(debug_request(), metadata=bearer("three"), timeout=30)
                break
            except grpc.RpcError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_calls_in_a_minute_under_load(guarded):
    outcomes: Counter[str] = Counter()
    retries: list[float] = []

    def some_calls() -> None:
        with client_of(guarded, "few") as client:
            for _ in range(10):
                try:
                    client.tokenize("the")
                    outcomes["OK"] += 1
                except ResourceExhaustedError as error:
                    retries.append(error.retry_after or 0.0)
                    outcomes[error.reason] += 1

    threads = [threading.Thread(target=some_calls) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {"OK": 20, "TOO_MANY_CALLS_PER_MINUTE": 60}
    assert all(0 < seconds <= 60 for seconds in retries)


def test_the_cost_of_a_call(guarded, debug_request, refusal):
    assert guarded.debugger.Debug(debug_request(prompt="the cat"), metadata=bearer("alice"))
    failed = refusal(lambda: guarded.debugger.Debug(debug_request(prompt=LONG), metadata=bearer("small")))
    assert (failed.info.reason, failed.retry_seconds) == ("COST_TOO_HIGH", None)
    with client_of(guarded, "small") as small, client_of(guarded, "alice") as alice:
        assert small.model_info().limits.max_activation_bytes == 200_000
        assert alice.model_info().limits.max_activation_bytes > 200_000


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


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_token_file_that_makes_no_sense_ends_the_server(tmp_path):
    (tmp_path / "tokens.toml").write_text("[[token]]\nname = 'a'")
    ended = serve_and_fail("--token-file", str(tmp_path / "tokens.toml"))
    assert ended.returncode == 1
    assert "sha256" in ended.stderr


def test_other_machines_are_not_served_in_clear():
    ended = serve_and_fail("--host", "0.0.0.0")
    assert ended.returncode == 2
    assert "--allow-plaintext" in ended.stderr


def test_unless_told_so(start_server):
    server = start_server("--host", "0.0.0.0", "--allow-plaintext")
    assert server.model.Tokenize(TokenizeRequest(text="a")).token_ids


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="needs IPv6")
def test_ipv6(start_server):
    server = start_server("--host", "::1")
    with grpc.insecure_channel(f"[::1]:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status


def serve_and_fail(*flags: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", "0", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    return ended


def test_connections_are_bounded(start_server):
    server = start_server("--max-connections", "3")
    own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]

    def connected() -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{server.port}", own)

    channels = [connected() for _ in range(5)]
    assert [is_served(channel) for channel in channels] == [True] * 3 + [False] * 2
    for channel in channels[2:]:
        channel.close()

    def one_more_is_served() -> bool:
        with connected() as channel:
            return is_served(channel)

    wait_until(one_more_is_served, seconds=20)
    for channel in channels[:2]:
        channel.close()


def is_served(channel: grpc.Channel) -> bool:
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - nothing else is expected
        return False
    return True


def test_old_connections_are_renewed_without_a_failed_call(start_server):
    server = start_server("--max-connection-age-seconds", "0.5")
    begun_at, peers = time.monotonic(), set()
    while time.monotonic() - begun_at < 3.0:
        server.model.Tokenize(TokenizeRequest(text="a"), timeout=10)
        time.sleep(0.02)
    lines = [line for line in server.log.read_text().splitlines() if "method=" in line]
    peers = {line.split("caller=")[1].split()[0] for line in lines}
    assert len(peers) >= 2


@dataclass(frozen=True)
class Certificates:
    """An authority, what it has signed, and a stranger's."""

    authority: trustme.CA
    folder: Path

    def issue(self, name: str, *identities: str, by: trustme.CA | None = None) -> tuple[Path, Path]:
        leaf = (by or self.authority).issue_cert(*identities, common_name=name)
        key, chain = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        leaf.private_key_pem.write_to_path(key)
        chain.write_bytes(b"".join(one.bytes() for one in leaf.cert_chain_pems))
        return chain, key

    @property
    def authority_file(self) -> Path:
        path = self.folder / "authority.pem"
        self.authority.cert_pem.write_to_path(path)
        return path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(trustme.CA(), tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[RunningServer]:
    """A server that shows a certificate and asks for one."""
    chain, key = certificates.issue("server", "127.0.0.1", "localhost")
    flags = ("--tls-certificate", str(chain), "--tls-key", str(key))
    flags += ("--tls-client-ca", str(certificates.authority_file), "--http-port", "0")
    server = start(tmp_path_factory.mktemp("mutual"), *flags)
    yield server
    stop(server)


def test_mutual_tls(mutual, certificates):
    chain, key = certificates.issue("carol", "carol@example.org")
    tls = Tls(ca_file=certificates.authority_file, cert_file=chain, key_file=key)
    with Client(f"127.0.0.1:{mutual.port}", tls=tls) as client:
        assert client.debug("the cat sat on the", " the").nodes
    line = [line for line in mutual.log.read_text().splitlines() if "StreamDebug" in line][-1]
    assert "caller=carol" in line


async def test_mutual_tls_with_the_async_client(mutual, certificates):
    chain, key = certificates.issue("dave", "dave@example.org")
    tls = Tls(ca_file=certificates.authority_file, cert_file=chain, key_file=key)
    async with AsyncClient(f"127.0.0.1:{mutual.port}", tls=tls) as client:
        assert (await client.tokenize("the")).token_ids


def test_no_certificate_or_a_strangers(mutual, certificates):
    """The handshake fails, so that not even a method is heard of; gRPC clients call that UNAVAILABLE."""
    before = mutual.log.read_text().count("method=")
    stranger = trustme.CA()
    chain, key = certificates.issue("mallory", "mallory@example.org", by=stranger)
    trusted = certificates.authority_file
    for tls in (Tls(ca_file=trusted), Tls(ca_file=trusted, cert_file=chain, key_file=key)):
        with (
            Client(f"127.0.0.1:{mutual.port}", tls=tls, timeout=10) as client,
            pytest.raises(UnreachableError, match="another certificate"),
        ):
            client.tokenize("the")
    with Client(f"127.0.0.1:{mutual.port}", timeout=10) as client, pytest.raises(UnreachableError):
        client.tokenize("the")
    assert mutual.log.read_text().count("method=") == before


def test_a_certificate_of_ours_with_the_wrong_name(start_server, certificates):
    """Refused before the request is read: bytes that are no request get the same answer."""
    chain, key = certificates.issue("server", "127.0.0.1", "localhost")
    server = start_server(
        *("--tls-certificate", str(chain), "--tls-key", str(key)),
        *(
            "--tls-client-ca",
            str(certificates.authority_file),
            "--tls-client-names",
            "grace, heidi@example.org",
        ),
    )
    for name, may_call in (("grace", True), ("heidi", True), ("ivan", False)):
        chain, key = certificates.issue(name, f"{name}@example.org")
        credentials = grpc.ssl_channel_credentials(
            certificates.authority_file.read_bytes(), key.read_bytes(), chain.read_bytes()
        )
        with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
            nonsense = channel.unary_unary("/transformer_debugger.v1.ModelService/Tokenize")
            with pytest.raises(grpc.RpcError) as caught:
                nonsense(b"\xff\xff")
        expected = grpc.StatusCode.INVALID_ARGUMENT if may_call else grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.code() is expected
        tls = Tls(ca_file=certificates.authority_file, cert_file=chain, key_file=key)
        with Client(f"127.0.0.1:{server.port}", tls=tls) as client:
            if may_call:
                assert client.tokenize("the").token_ids
            else:
                with pytest.raises(UnauthenticatedError, match="none of the names"):
                    client.tokenize("the")


def test_a_server_that_the_client_does_not_trust(mutual, certificates):
    chain, key = certificates.issue("erin", "erin@example.org")
    other = certificates.folder / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    tls = Tls(ca_file=other, cert_file=chain, key_file=key)
    with Client(f"127.0.0.1:{mutual.port}", tls=tls, timeout=10) as client, pytest.raises(UnreachableError):
        client.tokenize("the")


def test_the_gateway_has_the_same_tls(mutual, certificates):
    chain, key = certificates.issue("frank", "frank@example.org")
    context = ssl.create_default_context(cafile=str(certificates.authority_file))
    url = f"https://127.0.0.1:{mutual.http_port}/model_info"
    with pytest.raises(httpx.HTTPError):
        httpx.post(url, verify=context)
    context.load_cert_chain(chain, key)
    assert httpx.post(url, verify=context).status_code == 200


def test_tls_with_tokens_and_a_renewed_certificate(start_server, certificates, token_file):
    chain, key = certificates.issue("renewable", "127.0.0.1")
    server = start_server(
        "--tls-certificate", str(chain), "--tls-key", str(key), "--token-file", str(token_file)
    )

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", server.port), timeout=10)

    tls = Tls(ca_file=certificates.authority_file)
    with Client(f"127.0.0.1:{server.port}", tls=tls, token=TOKENS["alice"]) as client:
        assert client.tokenize("the").token_ids
    with (
        Client(f"127.0.0.1:{server.port}", tls=tls, token="wrong") as client,
        pytest.raises(UnauthenticatedError),
    ):
        client.tokenize("the")
    before = shown()
    certificates.issue("renewable", "127.0.0.1")
    wait_until(lambda: shown() != before, seconds=10)
    with Client(f"127.0.0.1:{server.port}", tls=tls, token=TOKENS["alice"]) as client:
        assert client.tokenize("the").token_ids


def test_certificates_that_cannot_be_used_end_the_server(tmp_path):
    (tmp_path / "c.pem").write_text("nothing")
    ended = serve_and_fail("--tls-certificate", str(tmp_path / "c.pem"), "--tls-key", str(tmp_path / "c.pem"))
    assert ended.returncode == 1
    assert "c.pem" in ended.stderr

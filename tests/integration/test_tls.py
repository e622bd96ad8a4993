"""TLS and mutual TLS, for gRPC and the gateway, with tokens and renewed certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from tdb_client import AsyncClient, Client, Tls, UnauthenticatedError, UnreachableError

from tests.chaos.vitals import wait_until
from tests.integration.failing_starts import serve_and_fail
from tests.integration.tokens import TOKENS
from tests.running_server import RunningServer, start, stop

LOGGED_SECONDS = 10.0


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

    def said() -> list[str]:
        return [line for line in mutual.log.read_text().splitlines() if "StreamDebug" in line]

    wait_until(lambda: bool(said()), LOGGED_SECONDS)  # a call is logged when all of it has been sent
    assert "caller=carol" in said()[-1]


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

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tdb_client import AsyncClient, Client, Tls, UnreachableError
from tdb_client.cli import main
from transformer_debugger.v1 import model_service_pb2_grpc

from tests.unit.client.fake_service import FakeService

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for the name tdb.test, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=tdb.test", "-addext", "subjectAltName=DNS:tdb.test"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def server(pair: tuple[Path, Path]) -> Iterator[tuple[str, FakeService]]:
    """A fake server that asks clients for their certificate."""
    certificate, key = (path.read_bytes() for path in pair)
    service = FakeService()
    server = grpc.server(ThreadPoolExecutor(2))
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=certificate, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}", service
    server.stop(None).wait()


async def test_both_sides_show_certificates(server: tuple[str, FakeService], pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    tls = Tls(ca_file=certificate, cert_file=certificate, key_file=str(key), server_name="tdb.test")
    with Client(server[0], tls=tls, token="secret") as client:
        assert client.model_info().name == "tiny"
    async with AsyncClient(server[0], tls=tls) as other:
        assert (await other.model_info()).name == "tiny"
    assert server[1].metadata[0]["authorization"] == "Bearer secret"


def test_the_command_takes_certificates(server: tuple[str, FakeService], pair: tuple[Path, Path]) -> None:
    certificate, key = map(str, pair)
    files = ["--tls-ca", certificate, "--tls-cert", certificate, "--tls-key", key]
    assert main(["--server", server[0], *files, "--tls-server-name", "tdb.test", "info"]) == 0


def test_an_unknown_certificate_is_refused(server: tuple[str, FakeService]) -> None:
    with Client(server[0], tls=Tls()) as client, pytest.raises(UnreachableError):
        client.model_info()

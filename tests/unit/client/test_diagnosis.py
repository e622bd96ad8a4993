from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tdb_client import diagnosis
from tdb_client.cli import main
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.connection import Connection, Tls
from tdb_client.diagnosis import Check, diagnose
from transformer_debugger.v1 import model_service_pb2_grpc

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
NEEDS_OPENSSL = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs openssl to make certificates"
)


def checks(server: str, **how: object) -> list[Check]:
    return list(diagnose(lambda: Connection(server, **how)))  # type: ignore[arg-type]


@contextmanager
def serving(
    *services: str,
    status: int = health_pb2.HealthCheckResponse.SERVING,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """A server with some of `health` and `model`."""
    server = grpc.server(ThreadPoolExecutor(2))
    if "health" in services:
        servicer = health.HealthServicer()
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if "model" in services:
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(FakeService(), server)
    add = (
        server.add_insecure_port
        if credentials is None
        else lambda at: server.add_secure_port(at, credentials)
    )
    port = add("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def certificate_pair(folder: Path) -> tuple[Path, Path]:
    """A certificate for the name tdb.test that ends in two days, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=tdb.test", "-addext", "subjectAltName=DNS:tdb.test"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


def test_a_good_server_passes_every_step(fake: Fake) -> None:
    found = checks(fake[0], token="secret")
    assert [one.name for one in found] == ["address", "connection", "health", "token", "version", "model"]
    assert {one.outcome for one in found} == {"ok"}
    assert found[-1].finding == (
        "tiny: llama, 2 layers, 6 heads, float32; prompts of up to 64 tokens;"
        " autoencoders with 80 latents at mlp_post_act"
    )
    assert fake[1].metadata[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("server", "step", "finding", "advice"),
    [
        ("nowhere", "address", "has no port", "HOST:PORT"),
        ("no.such.host.invalid:1", "address", "is not known", "spelling"),
        ("127.0.0.1:1", "connection", "nothing listens at 127.0.0.1:1", "tdb-server serve"),
    ],
)
def test_what_cannot_be_reached_is_told_with_advice(
    server: str, step: str, finding: str, advice: str
) -> None:
    last = checks(server)[-1]
    assert (last.name, last.outcome) == (step, "problem")
    assert finding in last.finding
    assert advice in last.advice


def test_other_addresses_are_left_to_gRPC(tmp_path: Path) -> None:  # noqa: N802
    found = checks(f"unix:{tmp_path}/no.sock")
    assert [one.name for one in found] == ["address", "health"]
    assert found[-1].outcome == "problem"


def test_something_else_that_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "STEP_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = checks(f"127.0.0.1:{listener.getsockname()[1]}")
    assert (found[-1].name, found[-1].outcome) == ("health", "problem")


def test_other_gRPC_servers_are_told() -> None:  # noqa: N802
    with serving() as server:
        last = checks(server)[-1]
        assert (last.name, last.outcome) == ("health", "problem")
        assert "without a health service" in last.finding
    with serving("health") as server:
        last = checks(server)[-1]
        assert (last.name, last.outcome) == ("version", "problem")
    with serving("health", "model", status=health_pb2.HealthCheckResponse.NOT_SERVING) as server:
        last = checks(server)[-1]
        assert "is NOT_SERVING" in last.finding
        assert "loading" in last.advice


def test_versions_are_compared(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake[1].api_version = "v2"
    last = checks(fake[0])[-1]
    assert (last.name, last.outcome) == ("version", "problem")
    assert "speaks interface 'v2'" in last.finding
    fake[1].api_version = "v1.4"
    monkeypatch.setattr(diagnosis, "client_version", lambda: "0.2.0")
    warned = checks(fake[0])[-2]
    assert (warned.name, warned.outcome) == ("version", "warning")
    assert "upgrade the server" in warned.advice


def test_tokens_in_clear_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "is_local", property(lambda self: False))
    with serving("health", "model") as server:
        found = checks(server, token="secret")
    assert next(one for one in found if one.name == "TLS").outcome == "warning"


@NEEDS_OPENSSL
def test_every_fault_of_TLS_has_its_own_words(tmp_path_factory: pytest.TempPathFactory) -> None:  # noqa: N802
    certificate, key = certificate_pair(tmp_path_factory.mktemp("tls"))
    other, _ = certificate_pair(tmp_path_factory.mktemp("tls"))
    signed = [(key.read_bytes(), certificate.read_bytes())]
    ours = Tls(certificate, certificate, key, server_name="tdb.test")
    with serving("health", "model", credentials=grpc.ssl_server_credentials(signed)) as server:
        told = {one.name: one for one in checks(server, tls=Tls(certificate, server_name="tdb.test"))}
        assert told["TLS"].outcome == "warning"  # ends in two days
        assert "certificate for tdb.test, valid for 2 days" in told["TLS"].finding
        assert told["model"].outcome == "ok"
        for how, finding, advice in (
            ({}, "the server speaks TLS", "--tls"),
            ({"tls": Tls()}, "not trusted", "--tls-ca"),
            ({"tls": Tls(certificate)}, "not trusted", "--tls-server-name"),
            ({"tls": Tls("/no/such/file")}, "No such file", "files"),
        ):
            last = checks(server, **how)[-1]
            assert last.outcome == "problem"
            assert finding in last.finding
            assert advice in last.advice
    mutual = grpc.ssl_server_credentials(signed, certificate.read_bytes(), require_client_auth=True)
    with serving("health", "model", credentials=mutual) as server:
        last = checks(server, tls=Tls(certificate, server_name="tdb.test"))[-1]
        assert last.finding == "the server wants a certificate of ours"
        assert checks(server, tls=ours)[-1].outcome == "ok"
    stranger = grpc.ssl_server_credentials(signed, other.read_bytes(), require_client_auth=True)
    with serving("health", "model", credentials=stranger) as server:
        assert checks(server, tls=ours)[-1].finding == "the server does not take our certificate"
    with serving("health", "model") as server:
        last = checks(server, tls=ours)[-1]
        assert "no TLS is spoken there" in last.finding


def test_the_command_says_what_to_do(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", fake[0]]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["ok", "address", "127.0.0.1"]
    assert out.endswith("\nAll is well.\n")
    assert main(["doctor", "--server", "127.0.0.1:1"]) == ExitCode.PROBLEM
    out = capsys.readouterr().out
    assert "problem  connection  nothing listens at 127.0.0.1:1" in out
    assert "→ Start a server there" in out
    assert main(["doctor", "--server", fake[0], "--token-file", "/no/such/file"]) == ExitCode.PROBLEM
    assert "No such file" in capsys.readouterr().out


def test_warnings_are_counted(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "client_version", lambda: "9.0.0")
    assert main(["doctor", "--server", fake[0]]) == ExitCode.DONE
    assert "can be used, with 1 warning." in capsys.readouterr().out


def test_the_command_has_a_form_for_programs(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--server", fake[0]]) == ExitCode.DONE
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["doctor", "--json", "--server", "nowhere"]) == ExitCode.PROBLEM
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["checks"][0]["name"] == "address"

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest
import trustme
from tdb_server.errors import ConfigurationBroken
from tdb_server.service.access.tls import ServerTls


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write(folder: Path, certificate: trustme.LeafCert) -> tuple[Path, Path]:
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "certificate.pem").write_bytes(b"".join(one.bytes() for one in certificate.cert_chain_pems))
    return folder / "certificate.pem", folder / "key.pem"


def test_renewed_files(tmp_path, authority, caplog):
    tls = ServerTls(*write(tmp_path, authority.issue_cert("localhost")), None)
    assert tls.renewed() is None
    renewed = authority.issue_cert("localhost")
    (tmp_path / "certificate.pem").write_bytes(renewed.cert_chain_pems[0].bytes())
    with caplog.at_level(logging.INFO):
        tls.look()
        assert tls.renewed() is None  # the key is not there yet
        assert "stays in use" in caplog.text
        write(tmp_path, renewed)
        tls.look()
        assert tls.renewed() is not None
        assert tls.renewed() is None
    assert "renewed" in caplog.text


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """The certificate that the server shows, in DER."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = ours.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def test_pythons_own_tls_uses_renewed_files(tmp_path, authority):
    tls = ServerTls(*write(tmp_path, authority.issue_cert("localhost")), None)
    server, client = tls.context(), ssl.create_default_context()
    authority.configure_trust(client)
    first = handshake(server, client)
    write(tmp_path, authority.issue_cert("localhost"))
    assert handshake(server, client) == first
    tls.look()
    second = handshake(server, client)
    assert second != first
    tls.look()
    assert handshake(server, client) == second


def test_what_does_not_fit_together(tmp_path, authority):
    certificate, key = write(tmp_path, authority.issue_cert("localhost"))
    authority.issue_cert("localhost").private_key_pem.write_to_path(key)
    with pytest.raises(ConfigurationBroken, match=r"key\.pem"):
        ServerTls(certificate, key, None)
    with pytest.raises(ConfigurationBroken, match="no-such"):
        ServerTls(certificate, tmp_path / "no-such", None)
    write(tmp_path, authority.issue_cert("localhost"))
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigurationBroken, match=r"ca\.pem"):
        ServerTls(certificate, key, tmp_path / "ca.pem")

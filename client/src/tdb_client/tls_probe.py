"""A TLS handshake without gRPC, because gRPC does not say what was wrong with it."""

from __future__ import annotations

import socket
import ssl
import time

from tdb_client.connection import Tls

ALPN = ["h2"]  # what gRPC speaks inside


class HandshakeError(Exception):
    """The handshake failed; `advice` says what may help."""

    def __init__(self, finding: str, advice: str) -> None:
        super().__init__(finding)
        self.advice = advice


def certificate_facts(host: str, port: int, tls: Tls, timeout: float) -> tuple[str, float]:
    """Shakes hands as the client would: what the server showed, in words, and the days it is valid for.

    Raises:
        HandshakeError: the handshake failed.
        OSError: a file cannot be read, or the connection broke.
    """
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.set_alpn_protocols(ALPN)
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    name = tls.server_name or host
    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=name) as sock,
        ):
            certificate, version = sock.getpeercert() or {}, sock.version()
            if not sock.recv(1):  # a gRPC server would say something; one that wants a certificate ends here
                raise _certificate_wanted(tls)
    except ssl.SSLCertVerificationError as error:
        advice = "Give the certificate that signed it with --tls-ca FILE"
        if "match" in error.verify_message.lower():
            advice = "Give the name the certificate is for with --tls-server-name NAME"
        raise HandshakeError(f"the certificate is not trusted: {error.verify_message}", advice) from None
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or ""):
            raise _certificate_wanted(tls) from None
        finding = f"no TLS is spoken there ({(error.reason or 'unknown').replace('_', ' ').lower()})"
        raise HandshakeError(finding, "Leave out --tls and what goes with it, or ask another port") from None
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days_left = (ends - time.time()) / 86400
    return f"{version}, certificate for {name}, valid for {days_left:.0f} days", days_left


def _certificate_wanted(tls: Tls) -> HandshakeError:
    if tls.cert_file is None:
        finding = "the server wants a certificate of ours"
        return HandshakeError(finding, "Give it with --tls-cert FILE and --tls-key FILE")
    finding = "the server does not take our certificate"
    return HandshakeError(finding, "Ask whoever runs the server for one that it trusts")


def speaks_tls(server: str, timeout: float) -> bool:
    """Whether a server that was spoken to in clear would rather have TLS."""
    host, _, port = server.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent: this only asks which language is spoken
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout) as plain:
            context.wrap_socket(plain).close()
    except (OSError, ValueError):
        return False
    return True

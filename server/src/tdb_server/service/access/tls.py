"""The server's certificate, and which clients' certificates it takes. Renewed files are used without a restart."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from tdb_server.errors import ConfigurationBroken
from tdb_server.service.access.file_watch import FileWatch

_log = logging.getLogger(__name__)


class ServerTls:
    """Reads the files when it is made, and again when they change.

    While new files do not fit together, as between the writing of one and of the other, those before serve on.

    Args:
        certificate: PEM file with the server's certificate chain.
        key: PEM file with its private key.
        client_ca: PEM file with authorities; clients must show a certificate of theirs. None to ask for none.
        clock: monotonic seconds.

    Raises:
        ConfigurationBroken: a file cannot be read, or they do not fit together.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._watch = FileWatch([path for path in (certificate, key, client_ca) if path], clock)
        self._first = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials for a port. gRPC asks for the files with every new connection, in a thread of its own."""
        return grpc.dynamic_ssl_server_credentials(
            self._first, self.renewed, require_client_authentication=self._client_ca is not None
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files, when they have changed to something that works; None to go on with those before."""
        if not self._watch.has_changed():
            return None
        try:
            configuration = self._read()
        except ConfigurationBroken as error:
            _log.error("%s; the certificate read before stays in use", error.message)
            return None
        _log.info("%s: the certificate was renewed", self._certificate)
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            self._check()
            return grpc.ssl_server_certificate_configuration(
                [(self._key.read_bytes(), self._certificate.read_bytes())],
                None if self._client_ca is None else self._client_ca.read_bytes(),
            )
        except (OSError, ValueError) as error:  # SSLError is an OSError
            names = ", ".join(str(path) for path in (self._certificate, self._key, self._client_ca) if path)
            raise ConfigurationBroken(f"TLS files {names}: {error}") from error

    def _check(self) -> None:
        """gRPC itself would only fail every handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The password keeps OpenSSL from asking the terminal for one.
        context.load_cert_chain(self._certificate, self._key, password="")
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)

"""The server's certificate, and which clients' certificates it takes. Renewed files need no restart."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from tdb_server.errors import ConfigurationBroken
from tdb_server.model.regular_file import read_regular
from tdb_server.service.access.file_watch import MAX_FILE_BYTES, stamp_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The files as they were at one time, for gRPC and for everything else."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class ServerTls:
    """Reads the files when it is made, and again when `look` finds that they have changed.

    While new files do not fit together, as after one is written and before the other is, the old ones serve.

    Args:
        certificate: PEM file with the server's certificate chain.
        key: PEM file with its private key.
        client_ca: PEM file with authorities; clients must show a certificate of theirs. None to ask for none.

    Raises:
        ConfigurationBroken: a file cannot be read, or they do not fit together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._paths = (certificate, key) if client_ca is None else (certificate, key, client_ca)
        self._stamp = stamp_of(self._paths)
        self._loaded = self._in_grpc = self._load()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for a gRPC port. For every new connection gRPC asks whether there are newer files."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            self.renewed,  # type: ignore[arg-type]  # may return None, says its documentation
            require_client_authentication=self._client_ca is not None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The files, when they are others than gRPC has; None to go on with those."""
        loaded = self._loaded
        if loaded is self._in_grpc:
            return None
        self._in_grpc = loaded
        return loaded.configuration

    def context(self) -> ssl.SSLContext:
        """The same for servers that use Python's own TLS."""

        def use_renewed(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._loaded.context

        first = self._loaded.context
        first.sni_callback = use_renewed  # called early in every handshake, also without a server name
        return first

    def look(self) -> None:
        """Reads the files again if they have changed. For a thread that may wait; handshakes do not."""
        before, self._stamp = self._stamp, stamp_of(self._paths)
        if self._stamp != before:
            try:
                self._loaded = self._load()
                _log.info("%s: the certificate was renewed", self._certificate)
            except ConfigurationBroken as error:
                _log.error("%s; the certificate read before stays in use", error.message)

    def _load(self) -> _Loaded:
        try:
            certificate, key, *client_ca = (
                read_regular(path, MAX_FILE_BYTES, ConfigurationBroken) for path in self._paths
            )
            configuration = grpc.ssl_server_certificate_configuration([(key, certificate)], *client_ca)
            return _Loaded(configuration, self._checked_context())
        except (OSError, ValueError) as error:  # SSLError is an OSError
            names = ", ".join(map(str, self._paths))
            raise ConfigurationBroken(f"TLS files {names}: {error}") from error

    def _checked_context(self) -> ssl.SSLContext:
        """Fails where gRPC would only fail every handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # The password keeps OpenSSL from asking the terminal for one.
        context.load_cert_chain(self._certificate, self._key, password="")
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

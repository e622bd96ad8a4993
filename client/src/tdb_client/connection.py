"""How a server is reached: channel options, TLS, the bearer token, retries."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import grpc

DEFAULT_SERVER = "127.0.0.1:50051"

SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],  # every method: calls have no side effects, so that all may be repeated
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""Calls that found no worker ready are repeated by gRPC itself, unless a stream's first message has come."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check who the server is, and how to say who we are. All defaults: the system's certificates.

    Attributes:
        ca_file: certificates (PEM) that vouch for the server.
        cert_file: our own certificate chain (PEM), where the server asks for one.
        key_file: its private key (PEM).
        server_name: the name the server's certificate has, when it is not the address's.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: one cannot be read.
            ValueError: a certificate without its key, or a key without its certificate.
        """
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")
        return grpc.ssl_channel_credentials(_read(self.ca_file), _read(self.key_file), _read(self.cert_file))


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything about how a server is reached.

    Attributes:
        server: `HOST:PORT`, or any other target that gRPC knows (`unix:PATH`, `dns:///NAME`).
        tls: None for a connection in clear.
        token: sent as a bearer token with every call.
        timeout: seconds a call may take where it does not say itself; None for no limit.
        max_receive_bytes: largest message that is taken; None for gRPC's 4 MiB, enough for streams.
    """

    server: str
    tls: Tls | None = None
    token: str | None = None
    timeout: float | None = None
    max_receive_bytes: int | None = None

    def open(self) -> grpc.Channel:
        """A channel for sync calls; it connects with the first call."""
        self._warn_of_token_in_clear()
        if self.tls is None:
            return grpc.insecure_channel(self.server, self._options())
        return grpc.secure_channel(self.server, self.tls.credentials(), self._options())

    def open_async(self) -> grpc.aio.Channel:
        """A channel for async calls, which belongs to the running event loop."""
        self._warn_of_token_in_clear()
        if self.tls is None:
            return grpc.aio.insecure_channel(self.server, self._options())
        return grpc.aio.secure_channel(self.server, self.tls.credentials(), self._options())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def seconds(self, timeout: float | None) -> float | None:
        """The timeout of a call that asks for `timeout`."""
        return self.timeout if timeout is None else timeout

    def _options(self) -> list[tuple[str, str | int]]:
        options: list[tuple[str, str | int]] = [("grpc.service_config", SERVICE_CONFIG)]
        if self.max_receive_bytes is not None:
            options.append(("grpc.max_receive_message_length", self.max_receive_bytes))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        if self.is_local:
            options.append(("grpc.enable_http_proxy", 0))
        return options

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = self.server.rpartition(":")[0]
        return self.server.startswith("unix:") or host in ("localhost", "[::1]") or host.startswith("127.")

    def _warn_of_token_in_clear(self) -> None:
        if self.token is not None and self.tls is None and not self.is_local:
            warnings.warn(f"the token is sent to {self.server} in clear; use TLS", stacklevel=4)


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()

"""How a server is reached: channel options, TLS, the bearer token, retries."""

from __future__ import annotations

import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import grpc

from tdb_client.errors import InvalidValueError
from tdb_client.value_check import LARGEST, check_text, check_token

DEFAULT_SERVER = "127.0.0.1:50051"

RETRIES = {
    "methodConfig": [
        {
            "name": [{}],  # every method: calls have no side effects, so that all may be repeated
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED is what gRPC answers in the moment in which a server closes its port.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}
"""Calls that found no worker, or no server, are repeated by gRPC itself, unless a first message has come."""

BALANCING = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "transformer_debugger.v1.TransformerDebuggerService"},
}
"""Calls go in turn to the servers that say they are ready: none to one that stops, or has no worker."""

BALANCED_SCHEMES = ("dns:", "ipv4:", "ipv6:")
RECONNECT_MILLISECONDS = 500, 5_000
"""Pauses between attempts to reach a server that is down, the first and the longest."""

RESOLVE_MILLISECONDS = 5_000
"""The least time between two look-ups of a name: servers that replace lost ones are found soon."""


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
        server: `HOST:PORT` of one server or of a balancer; or several servers, which get this client's calls
            in turn: `dns:///NAME:PORT` for all addresses of a name, `ipv4:ADDRESS:PORT,ADDRESS:PORT` for
            those listed. Any other target that gRPC knows will do too (`unix:PATH`).
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

    def __post_init__(self) -> None:
        check_text(self.server, "server")
        if self.token is not None:
            check_token(self.token)

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
        """The timeout of a call that asks for `timeout`; at most what gRPC can count, which is 68 years."""
        seconds = self.timeout if timeout is None else timeout
        if seconds is None:
            return None
        if math.isnan(seconds):
            raise InvalidValueError("timeout", "nan is no number of seconds")
        return min(seconds, LARGEST)

    def _options(self) -> list[tuple[str, str | int]]:
        config = RETRIES | BALANCING if self.is_balanced else RETRIES
        options: list[tuple[str, str | int]] = [("grpc.service_config", json.dumps(config))]
        if self.is_balanced:
            first, longest = RECONNECT_MILLISECONDS
            options += [
                ("grpc.initial_reconnect_backoff_ms", first),
                ("grpc.max_reconnect_backoff_ms", longest),
                ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MILLISECONDS),
            ]
        if self.max_receive_bytes is not None:
            options.append(("grpc.max_receive_message_length", self.max_receive_bytes))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        if self.is_local:
            options.append(("grpc.enable_http_proxy", 0))
        return options

    @property
    def is_balanced(self) -> bool:
        """Whether `server` is all addresses of a name, or a list of them, which get calls in turn."""
        return self.server.startswith(BALANCED_SCHEMES)

    @property
    def is_local(self) -> bool:
        """Whether the server is, or all servers are, on this machine."""
        if self.server.startswith("unix:"):
            return True
        targets = self.server.partition(":")[2] if self.is_balanced else self.server
        hosts = [one.rpartition(":")[0] for one in targets.rpartition("/")[2].split(",")]
        return all(host in ("localhost", "[::1]") or host.startswith("127.") for host in hosts)

    def _warn_of_token_in_clear(self) -> None:
        if self.token is not None and self.tls is None and not self.is_local:
            warnings.warn(f"the token is sent to {self.server} in clear; use TLS", stacklevel=4)


def default_server() -> str:
    """The server to ask where none is named: $TDB_SERVER, else one on this machine."""
    return os.environ.get("TDB_SERVER") or DEFAULT_SERVER


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()

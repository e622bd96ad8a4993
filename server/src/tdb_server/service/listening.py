"""Where the gRPC server listens, and what it lets connections do."""

from __future__ import annotations

import socket

import grpc.aio

from tdb_server.service.access.tls import ServerTls
from tdb_server.service.compressed_requests import NO_DECOMPRESSION
from tdb_server.settings import Settings

GRACE_BEYOND_CALLS_SECONDS = 10.0
MAX_HEAD_BYTES = 16 * 1024
"""The most that the headers of a request, or a call's metadata, may have."""


def server_tls(settings: Settings) -> ServerTls | None:
    """The server's side of TLS; None to listen in clear.

    Raises:
        ConfigurationBroken: a file cannot be read, or they do not fit together.
    """
    security = settings.security
    if security.tls_certificate is None or security.tls_key is None:
        return None
    return ServerTls(security.tls_certificate, security.tls_key, security.tls_client_ca)


def listen(server: grpc.aio.Server, host: str, port: int, tls: ServerTls | None) -> int:
    """Opens the port.

    Returns:
        The port, also when it was 0.

    Raises:
        OSError: the port cannot be had.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if port:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            socket.create_server((host, port), family=family).close()  # says what is wrong; gRPC only logs it
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, tls.grpc_credentials())
    except (OSError, RuntimeError) as error:
        raise OSError(f"cannot listen on {address}: {error}") from error


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Options of the gRPC core: message sizes, what a connection may do, and how dead ones are noticed."""
    security = settings.security
    return [
        # Four times our own limit: what is a little too large gets a typed error, the rest is cut off unread.
        ("grpc.max_receive_message_length", 4 * settings.limits.max_request_bytes),
        *NO_DECOMPRESSION,
        ("grpc.max_send_message_length", -1),  # answers are limited where they are made
        ("grpc.absolute_max_metadata_size", MAX_HEAD_BYTES),
        ("grpc.so_reuseport", 0),  # two servers on one port would each get half of the calls
        ("grpc.max_allowed_incoming_connections", security.max_connections),
        ("grpc.max_concurrent_streams", security.max_concurrent_streams),
        ("grpc.server_handshake_timeout_ms", _milliseconds(security.max_head_seconds)),
        # Clients that connect anew find servers that have been added, and see renewed certificates.
        ("grpc.max_connection_age_ms", _milliseconds(security.max_connection_age_seconds)),
        (
            "grpc.max_connection_age_grace_ms",
            _milliseconds(settings.limits.max_call_seconds + GRACE_BEYOND_CALLS_SECONDS),
        ),
        ("grpc.max_connection_idle_ms", _milliseconds(security.max_connection_idle_seconds)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _milliseconds(seconds: float) -> int:
    return min(round(seconds * 1000), 2**31 - 1)

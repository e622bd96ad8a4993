"""Who may connect and call: the part of the settings that is about TLS, tokens and connections."""

from __future__ import annotations

import argparse
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdb_server.domain.caller import CallerLimits
from tdb_server.domain.priority import Priority
from tdb_server.flags import at_least, byte_size, flag, name_list, positive_number, positive_seconds, switch

_TOKEN_EXAMPLE = """\
The token goes to stderr, once; the file's entry, with a hash in place of the token, to stdout:

  tdb-server token alice --calls-per-minute 60 >> tokens.toml
  tdb-server serve --token-file tokens.toml
"""
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def network_list(text: str) -> tuple[str, ...]:
    """Networks, or single addresses, separated by commas."""
    return tuple(str(ipaddress.ip_network(one)) for one in name_list(text))


def host_list(text: str) -> tuple[str, ...]:
    """Names of hosts, separated by commas, without ports."""
    hosts = name_list(text)
    for one in hosts:
        if not _HOST.fullmatch(one):
            raise argparse.ArgumentTypeError(f"must be a host's name or address, without a port: {one!r}")
    return hosts


@dataclass(frozen=True, slots=True)
class Security:
    """Who may connect, who may call, and how many at once. Numbers of connections are of each port.

    Attributes:
        tls_certificate: None to listen in clear.
        tls_client_ca: None to ask clients for no certificate.
        tls_client_names: empty to take every client that one of the authorities vouches for.
        token_file: None to let everybody call.
        allowed_hosts: names that HTTP requests may be sent to, and whose web pages may call, beside those of
            this machine's loopback and the address listened on.
        max_connections_per_address: over gRPC, where connections cannot be told apart, calls.
        max_concurrent_streams: further calls wait in the client.
        max_head_seconds: from connecting, or from the first byte, to the end of a request's head; also for
            the handshakes of TLS and gRPC.
        max_body_seconds: also how long a client may take nothing of an answer.
    """

    tls_certificate: Path | None = flag(None, Path, "PEM", "the server's certificate chain: listen with TLS")
    tls_key: Path | None = flag(None, Path, "PEM", "its private key")
    tls_client_ca: Path | None = flag(
        None, Path, "PEM", "authorities: clients must show a certificate of theirs"
    )
    tls_client_names: tuple[str, ...] = flag((), name_list, "NAME,..", "one of which certificates must have")
    token_file: Path | None = flag(None, Path, "TOML", "tokens that may call; see `tdb-server token`")
    trusted_proxies: tuple[str, ...] = flag(
        (),
        network_list,
        "NETWORK,..",
        "proxies, as addresses or networks, whose X-Forwarded-For says who calls",
    )
    allow_plaintext: bool = switch(False, "listen for other machines without TLS")
    allowed_hosts: tuple[str, ...] = flag(
        (), host_list, "NAME,..", "hosts to answer to over HTTP; *.NAME for any below"
    )
    max_connections: int = flag(1000, at_least(1), "N", "connections at the same time")
    max_connections_per_address: int = flag(500, at_least(1), "N", "of them, from one address")
    max_concurrent_streams: int = flag(128, at_least(1), "N", "calls at the same time on one connection")
    max_connection_age_seconds: float = flag(
        3600.0, positive_seconds, "S", "when clients have to connect anew"
    )
    max_connection_idle_seconds: float = flag(
        900.0, positive_seconds, "S", "when unused connections are closed"
    )
    max_head_seconds: float = flag(10.0, positive_seconds, "S", "for a request's head, and for handshakes")
    max_body_seconds: float = flag(20.0, positive_seconds, "S", "for a request's body over HTTP")


@dataclass(frozen=True, slots=True)
class NewToken:
    """What `tdb-server token` was told: for whom to make a token, and what they may do with it."""

    name: str
    limits: CallerLimits
    weight: float = 1.0
    tenant: str | None = None


def check_security(security: Security, host: str, http_port: int | None) -> None:
    """Looks at flags together.

    Raises:
        ValueError: they contradict each other, or the server would be open to other machines.
    """
    if (security.tls_certificate is None) != (security.tls_key is None):
        raise ValueError("--tls-certificate and --tls-key go together")
    if security.tls_client_ca is not None and security.tls_certificate is None:
        raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key")
    if security.tls_client_names and security.tls_client_ca is None:
        raise ValueError("--tls-client-names needs --tls-client-ca")
    if security.tls_client_names and http_port is not None:
        raise ValueError("--tls-client-names goes without --http-port: there the names are not to be had")
    if security.tls_certificate is None and not security.allow_plaintext and not is_loopback(host):
        raise ValueError(
            f"listening on {host} without TLS would let anyone on the network read and send calls; "
            "give --tls-certificate and --tls-key, or --allow-plaintext where the network is yours "
            "or a proxy does TLS"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. Names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_token_command(commands: Any) -> None:
    """The command `token` with its flags."""
    token = commands.add_parser(
        "token",
        help="make a token for a caller",
        description="Makes a token for a caller and the entry that the server's token file needs.",
        epilog=_TOKEN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = token.add_argument
    add("name", type=token_name, metavar="NAME", help="of the caller, in logs and in the queue")
    add("--max-concurrent-calls", type=at_least(1), metavar="N", help="calls at the same time")
    add("--calls-per-minute", type=at_least(1), metavar="N", help="calls begun in any minute")
    add(
        "--max-activation-bytes", type=byte_size, metavar="N", help="estimated bytes of activations of a call"
    )
    priorities = [one.value for one in Priority]
    add("--max-priority", choices=priorities, default=priorities[0], help="the highest that calls get")
    share = "share of the devices' time, beside 1 of others (default: 1)"
    add("--weight", type=positive_number, default=1.0, metavar="W", help=share)
    add("--tenant", type=token_name, metavar="NAME", help="callers of one tenant share cached results")


def read_new_token(told: argparse.Namespace) -> NewToken:
    """What `token` was told."""
    at_once, per_minute = told.max_concurrent_calls, told.calls_per_minute
    limits = CallerLimits(at_once, per_minute, told.max_activation_bytes, Priority(told.max_priority))
    return NewToken(told.name, limits, told.weight, told.tenant)


def token_name(text: str) -> str:
    """A name that is safe to put into logs."""
    if not _TOKEN_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"must be at most 64 letters, digits, and . _ @ - after the first: {text!r}"
        )
    return text

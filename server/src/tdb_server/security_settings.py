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
from tdb_server.flags import Flags, at_least, byte_size, name_list, positive_number, positive_seconds

_TOKEN_EXAMPLE = """\
The token goes to stderr, once; the file's entry, with a hash in place of the token, to stdout:

  tdb-server token alice --calls-per-minute 60 >> tokens.toml
  tdb-server serve --token-file tokens.toml
"""
_HOST = re.compile(r"\*|(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Security:
    """Who may connect, who may call, and how many at once.

    Attributes:
        tls_certificate: PEM file with the server's certificate chain; None to listen in clear.
        tls_key: PEM file with its private key.
        tls_client_ca: PEM file with the authorities one of which must vouch for every client; None to ask
            clients for no certificate.
        tls_client_names: names, one of which a client's certificate must have; empty to take every client
            that one of the authorities vouches for.
        token_file: TOML file with the tokens that may call; None to let everybody call.
        allowed_hosts: names that HTTP requests may be sent to, and whose web pages may call, beside those of
            this machine's loopback and the address listened on.
        max_connections: connections at the same time, of each port.
        max_connections_per_address: of them, those from one address; over gRPC, where they cannot be told
            apart, calls.
        max_concurrent_streams: calls at the same time on one connection; further ones wait in the client.
        max_connection_age_seconds: after this a connection takes no more calls, and the client opens another.
        max_connection_idle_seconds: after this long without a call a connection is closed.
        max_head_seconds: from connecting, or from the first byte, to the end of a request's head; also for
            the handshakes of TLS and gRPC.
        max_body_seconds: for a request's body over HTTP, and how long a client may take nothing of an answer.
        trusted_proxies: networks of proxies that are believed when they say for whom they call.
    """

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_client_names: tuple[str, ...] = ()
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_connections: int = 1000
    max_connections_per_address: int = 500
    max_concurrent_streams: int = 128
    max_connection_age_seconds: float = 3600.0
    max_connection_idle_seconds: float = 900.0
    max_head_seconds: float = 10.0
    max_body_seconds: float = 20.0
    trusted_proxies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NewToken:
    """What `tdb-server token` was told: for whom to make a token, and what they may do with it."""

    name: str
    limits: CallerLimits
    weight: float = 1.0
    tenant: str | None = None


def add_security_flags(flags: Flags) -> None:
    """The flags of `serve` that are about security."""
    flags.group("who may call")
    flags.add("--tls-certificate", Path, None, "PEM", "the server's certificate chain: listen with TLS")
    flags.add("--tls-key", Path, None, "PEM", "its private key")
    flags.add("--tls-client-ca", Path, None, "PEM", "authorities: clients must show a certificate of theirs")
    flags.add("--tls-client-names", name_list, (), "NAME,..", "one of which certificates must have")
    flags.add("--token-file", Path, None, "TOML", "tokens that may call; see `tdb-server token`")
    flags.add(
        "--trusted-proxies",
        network_list,
        (),
        "NETWORK,..",
        "proxies, as addresses or networks, whose X-Forwarded-For says who calls",
    )
    flags.add_switch("--allow-plaintext", "listen for other machines without TLS")
    flags.add(
        "--allowed-hosts", host_list, (), "NAME,..", "hosts to answer to over HTTP; *.NAME for any below"
    )
    flags.add("--max-connections", at_least(1), 1000, "N", "connections at the same time")
    flags.add("--max-connections-per-address", at_least(1), 500, "N", "of them, from one address")
    flags.add("--max-concurrent-streams", at_least(1), 128, "N", "calls at the same time on one connection")
    flags.add(
        "--max-connection-age-seconds", positive_seconds, 3600.0, "S", "when clients have to connect anew"
    )
    flags.add(
        "--max-connection-idle-seconds", positive_seconds, 900.0, "S", "when unused connections are closed"
    )
    flags.add("--max-head-seconds", positive_seconds, 10.0, "S", "for a request's head, and for handshakes")
    flags.add("--max-body-seconds", positive_seconds, 20.0, "S", "for a request's body over HTTP")


def read_security(told: argparse.Namespace) -> Security:
    """What was told about security.

    Raises:
        ValueError: the flags contradict each other, or the server would be open to other machines.
    """
    if (told.tls_certificate is None) != (told.tls_key is None):
        raise ValueError("--tls-certificate and --tls-key go together")
    if told.tls_client_ca is not None and told.tls_certificate is None:
        raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key")
    if told.tls_client_names and told.tls_client_ca is None:
        raise ValueError("--tls-client-names needs --tls-client-ca")
    if told.tls_client_names and told.http_port is not None:
        raise ValueError("--tls-client-names goes without --http-port: there the names are not to be had")
    if told.tls_certificate is None and not told.allow_plaintext and not is_loopback(told.host):
        raise ValueError(
            f"listening on {told.host} without TLS would let anyone on the network read and send calls; "
            "give --tls-certificate and --tls-key, or --allow-plaintext where the network is yours "
            "or a proxy does TLS"
        )
    return Security(
        tls_certificate=told.tls_certificate,
        tls_key=told.tls_key,
        tls_client_ca=told.tls_client_ca,
        tls_client_names=told.tls_client_names,
        token_file=told.token_file,
        allowed_hosts=told.allowed_hosts,
        max_connections=told.max_connections,
        max_connections_per_address=told.max_connections_per_address,
        max_concurrent_streams=told.max_concurrent_streams,
        max_connection_age_seconds=told.max_connection_age_seconds,
        max_connection_idle_seconds=told.max_connection_idle_seconds,
        max_head_seconds=told.max_head_seconds,
        max_body_seconds=told.max_body_seconds,
        trusted_proxies=told.trusted_proxies,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. Names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def network_list(text: str) -> tuple[str, ...]:
    """Networks, or single addresses, separated by commas."""
    return tuple(str(ipaddress.ip_network(one)) for one in name_list(text))


def add_token_command(commands: Any) -> None:
    """The command `token` with its flags."""
    token = commands.add_parser(
        "token",
        help="make a token for a caller",
        description="Makes a token for a caller and the entry that the server's token file needs.",
        epilog=_TOKEN_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    token.add_argument(
        "name", type=token_name, metavar="NAME", help="of the caller, in logs and in the queue"
    )
    token.add_argument("--max-concurrent-calls", type=at_least(1), metavar="N", help="calls at the same time")
    token.add_argument("--calls-per-minute", type=at_least(1), metavar="N", help="calls begun in any minute")
    token.add_argument(
        "--max-activation-bytes", type=byte_size, metavar="N", help="estimated bytes of activations of a call"
    )
    token.add_argument(
        "--max-priority",
        choices=[one.value for one in Priority],
        default=Priority.INTERACTIVE.value,
        help="the highest that calls get",
    )
    token.add_argument(
        "--weight",
        type=positive_number,
        default=1.0,
        metavar="W",
        help="share of the devices' time, beside 1 of others (default: 1)",
    )
    token.add_argument(
        "--tenant", type=token_name, metavar="NAME", help="callers of one tenant share cached results"
    )


def read_new_token(told: argparse.Namespace) -> NewToken:
    """What `token` was told."""
    limits = CallerLimits(
        told.max_concurrent_calls,
        told.calls_per_minute,
        told.max_activation_bytes,
        Priority(told.max_priority),
    )
    return NewToken(told.name, limits, told.weight, told.tenant)


def host_list(text: str) -> tuple[str, ...]:
    """Names of hosts, separated by commas, without ports."""
    hosts = name_list(text)
    for one in hosts:
        if not _HOST.fullmatch(one):
            raise argparse.ArgumentTypeError(f"must be a host's name or address, without a port: {one!r}")
    return hosts


def token_name(text: str) -> str:
    """A name that is safe to put into logs."""
    if not _TOKEN_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"must be at most 64 letters, digits, and . _ @ - after the first: {text!r}"
        )
    return text

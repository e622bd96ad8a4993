"""The options that say how the server is reached, and the client they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import shtab

from tdb_client.async_client import AsyncClient
from tdb_client.client import Client
from tdb_client.connection import DEFAULT_SERVER, Connection, Tls, default_server


def add_connection(parser: argparse.ArgumentParser, *, is_default: bool) -> None:
    """Adds options that may stand before and after the command; what stands after wins."""

    def add(name: str, default: object, **how: Any) -> argparse.Action:
        return group.add_argument(name, default=default if is_default else argparse.SUPPRESS, **how)

    def file(name: str, text: str) -> None:
        offer_files(add(name, None, metavar="FILE", type=Path, help=text))

    group = parser.add_argument_group("connection")
    add(
        "--server",
        default_server(),
        metavar="HOST:PORT",
        help=f"server to ask (default: $TDB_SERVER, else {DEFAULT_SERVER})",
    )
    add("--timeout", 120.0, metavar="SECONDS", type=_positive, help="how long a call may take (default: 120)")
    add(
        "--priority",
        None,
        choices=["interactive", "sweep"],
        help="sweep, for one of many calls, lets others go first (default: interactive; `tdb sweep`: sweep)",
    )
    file("--token-file", "file with the bearer token")
    add("--tls", False, action="store_true", help="use TLS; implied by the following")
    file("--tls-ca", "certificates that vouch for the server (PEM)")
    file("--tls-cert", "our certificate (PEM)")
    file("--tls-key", "its private key (PEM)")
    add("--tls-server-name", None, metavar="NAME", help="name in the server's certificate")


def offer_files(option: argparse.Action) -> None:
    """Lets shells complete an option's value with names of files."""
    option.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab looks for


def connection(options: argparse.Namespace) -> Connection:
    """How the options want the server to be reached; exits with code 2 when they do not go together.

    Raises:
        OSError: the token's file cannot be read.
        InvalidValueError: the server's name or the token makes no sense.
    """
    files = Tls(options.tls_ca, options.tls_cert, options.tls_key, options.tls_server_name)
    if (options.tls_cert is None) != (options.tls_key is None):
        options.parser.error("--tls-cert and --tls-key belong together")
    return Connection(
        options.server,
        tls=files if options.tls or files != Tls() else None,
        token=options.token_file.read_text("ascii", "surrogateescape").strip()
        if options.token_file
        else None,
        timeout=options.timeout,
    )


def client(options: argparse.Namespace) -> Client:
    """A client of the server that the options name.

    Raises:
        OSError: a file cannot be read.
    """
    how, priority = connection(options), options.priority or "interactive"
    return Client(how.server, timeout=how.timeout, tls=how.tls, token=how.token, priority=priority)


def async_client(options: argparse.Namespace, *, default_priority: str) -> AsyncClient:
    """The same for asyncio, with a priority that the command chooses where the options do not."""
    how, priority = connection(options), options.priority or default_priority
    return AsyncClient(how.server, timeout=how.timeout, tls=how.tls, token=how.token, priority=priority)


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds

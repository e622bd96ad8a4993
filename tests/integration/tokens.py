"""Tokens of some callers, with their limits, and a file of them."""

from __future__ import annotations

from pathlib import Path

from tdb_client import Client
from tdb_server.domain.caller import CallerLimits
from tdb_server.domain.priority import Priority
from tdb_server.service.access.token import new_token, token_entry

from tests.running_server import RunningServer

TOKENS = {name: new_token() for name in ("alice", "bob", "one", "two", "three", "few", "small", "sweeper")}
LIMITS = {
    "one": CallerLimits(max_concurrent_calls=2),
    "two": CallerLimits(max_concurrent_calls=2),
    "three": CallerLimits(max_concurrent_calls=2),
    "few": CallerLimits(calls_per_minute=20),
    "small": CallerLimits(max_activation_bytes=200_000),
    "sweeper": CallerLimits(max_priority=Priority.SWEEP),
}


def write_tokens(path: Path, *names: str) -> None:
    """Beside and renamed, as operators should."""
    entries = [token_entry(name, TOKENS[name], LIMITS.get(name, CallerLimits())) for name in names]
    beside = path.with_name(f".{path.name}")
    beside.write_text("\n".join(entries) or "token = []")
    beside.rename(path)


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {TOKENS[name]}")]


def client_of(server: RunningServer, name: str | None) -> Client:
    return Client(f"127.0.0.1:{server.port}", token=None if name is None else TOKENS[name], timeout=30)

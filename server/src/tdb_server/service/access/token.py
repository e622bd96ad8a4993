"""Bearer tokens: how one is made, and what of it the server keeps.

A token is 256 random bits, so that a plain SHA-256 of it can neither be guessed nor be turned back; the slow
hashes that passwords need would only slow down calls.
"""

from __future__ import annotations

import hashlib
import secrets

from tdb_server.domain.caller import CallerLimits
from tdb_server.domain.priority import Priority

PREFIX = "tdb_"
"""Lets people and scanners of repositories see what they have found."""

LIMIT_KEYS = ("max_concurrent_calls", "calls_per_minute", "max_activation_bytes")


def new_token() -> str:
    """A token that nobody has seen before."""
    return PREFIX + secrets.token_urlsafe(32)


def token_digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def token_entry(
    name: str, token: str, limits: CallerLimits, weight: float = 1.0, tenant: str | None = None
) -> str:
    """The entry of a token file that lets the token in. The token itself is not in it."""
    lines = ["[[token]]", f'name = "{name}"', f'sha256 = "{token_digest(token).hex()}"']
    given = {key: getattr(limits, key) for key in LIMIT_KEYS}
    lines += [f"{key} = {value}" for key, value in given.items() if value is not None]
    if limits.max_priority is not Priority.INTERACTIVE:
        lines.append(f'max_priority = "{limits.max_priority.value}"')
    if weight != 1.0:
        lines.append(f"weight = {weight}")
    if tenant is not None:
        lines.append(f'tenant = "{tenant}"')
    return "\n".join(lines) + "\n"

"""Who calls, and what they may ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdb_server.domain.limits import Limits


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits of one caller, on top of the server's own. None: no limit but the server's.

    Attributes:
        max_concurrent_calls: calls at the same time.
        calls_per_minute: calls begun within any 60 seconds.
        max_activation_bytes: estimated bytes of activations and gradients of one call.
    """

    max_concurrent_calls: int | None = None
    calls_per_minute: int | None = None
    max_activation_bytes: int | None = None

    def within(self, limits: Limits) -> Limits:
        """The server's limits, where this caller's are not stricter."""
        return replace(
            limits,
            max_concurrent_calls=_smaller(limits.max_concurrent_calls, self.max_concurrent_calls),
            max_activation_bytes=_smaller(limits.max_activation_bytes, self.max_activation_bytes),
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a call comes from. Calls of the same name share a turn in the queue and the limits.

    Attributes:
        name: of the token; without tokens that in the client's certificate; without one the connection.
        limits: what this caller may ask for.
    """

    name: str
    limits: CallerLimits = CallerLimits()


def _smaller(limit: int, own: int | None) -> int:
    return limit if own is None else min(limit, own)

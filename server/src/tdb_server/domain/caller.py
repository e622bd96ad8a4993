"""Who calls, and what they may ask for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdb_server.domain.limits import Limits
from tdb_server.domain.priority import Priority


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits of one caller, on top of the server's own. None: no limit but the server's.

    Attributes:
        max_concurrent_calls: calls at the same time.
        calls_per_minute: calls begun within any 60 seconds.
        max_activation_bytes: estimated bytes of activations and gradients of one call.
        max_priority: calls that ask for a higher one get this one.
    """

    max_concurrent_calls: int | None = None
    calls_per_minute: int | None = None
    max_activation_bytes: int | None = None
    max_priority: Priority = Priority.INTERACTIVE

    def within(self, limits: Limits) -> Limits:
        """The server's limits, where this caller's are not stricter."""
        return replace(
            limits,
            max_concurrent_calls=min(_known(limits.max_concurrent_calls, self.max_concurrent_calls)),
            max_activation_bytes=min(
                _known(limits.max_activation_bytes, self.max_activation_bytes), default=None
            ),
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a call comes from. Calls of the same name share a turn in the queue and the limits.

    Attributes:
        name: of the token; without tokens that in the client's certificate; without one the client's address.
        limits: what this caller may ask for.
        weight: its share of the devices' time beside other callers', which have 1 unless told otherwise.
        tenant: callers of the same tenant share results in the cache; None to share them with nobody.
        connection: the one that the call came over. Connections of a caller take turns too.
        has_token: whether the name is a token's, so that there are only as many as somebody wrote down.
    """

    name: str
    limits: CallerLimits = CallerLimits()
    weight: float = 1.0
    tenant: str | None = None
    connection: str = ""
    has_token: bool = False

    @property
    def cache_owner(self) -> str:
        """Whose results this caller's are: equal for callers that may learn what the others asked."""
        return f"caller {self.name}" if self.tenant is None else f"tenant {self.tenant}"


def _known(*limits: int | None) -> list[int]:
    return [one for one in limits if one is not None]

"""Bytes that all calls of the server share, so that many of them take no more than one machine has."""

from __future__ import annotations

from collections import Counter

from tdb_server.errors import OverLimit

RETRY_SECONDS = 1.0


class Budget:
    """What may be held at the same time. Lives on the event loop.

    A caller may hold as much as it leaves free: one alone half of all, two a third each, and so on. So
    whoever comes always finds something.

    Args:
        max_bytes: in all.
        what: what the bytes are, for people: "... wait to be read".
        reason: of a refusal, for programs.
    """

    def __init__(self, max_bytes: int, what: str, reason: str) -> None:
        self._max_bytes = max_bytes
        self._what = what
        self._reason = reason
        self._held: Counter[str] = Counter()

    @property
    def n_bytes(self) -> int:
        """What is held now."""
        return self._held.total()

    def try_take(self, caller: str, n_bytes: int) -> bool:
        """Takes bytes where there is room for them; whether there was."""
        if self._held[caller] + n_bytes > self._max_bytes - self.n_bytes - n_bytes:
            return False
        self._held[caller] += n_bytes
        return True

    def take(self, caller: str, n_bytes: int) -> None:
        """Takes bytes.

        Raises:
            OverLimit: there is no room for them.
        """
        if self.try_take(caller, n_bytes):
            return
        fits_alone = 2 * n_bytes <= self._max_bytes
        raise OverLimit(
            f"{n_bytes} more bytes of {self._what}, beside {self._held[caller]} of this caller and "
            f"{self.n_bytes} in all, are over the limit of {self._max_bytes}, of which a caller may hold as "
            "much as it leaves free",
            self._reason,
            RETRY_SECONDS if fits_alone else None,
        )

    def give_back(self, caller: str, n_bytes: int) -> None:
        """They are not held any more."""
        self._held[caller] -= n_bytes
        if not self._held[caller]:
            del self._held[caller]

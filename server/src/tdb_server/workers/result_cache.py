"""Results of earlier calls. They follow from the weights and the request alone, so equal calls share them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.requests import InferenceSubRequest
from tdb_server.domain.results import CallEvent, Finished

MAX_RECORDED_SHARE = 0.25
"""How much of the cache may be taken by calls that are still running."""
EVENT_OVERHEAD_BYTES = 256


def cache_key(digest: str, sub_requests: Sequence[InferenceSubRequest]) -> bytes:
    """Equal for equal sub-requests to equal weights.

    Args:
        digest: of the weights.
        sub_requests: what is asked of them.
    """
    # The text of a frozen dataclass names every field, and numbers in full precision.
    return hashlib.sha256(f"{digest} {tuple(sub_requests)!r}".encode()).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    events: tuple[CallEvent, ...]
    n_bytes: int


class ResultCache:
    """Least recently used entries go first, to make room for others and for what is being recorded.

    Args:
        max_bytes: of everything together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._entry_bytes = 0
        self._recorded_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What all entries and recordings take."""
        return self._entry_bytes + self._recorded_bytes

    def get(self, key: bytes | None) -> Sequence[CallEvent] | None:
        """The events of an earlier equal call."""
        if key is None or key not in self._entries:
            return None
        entry = self._entries[key]
        self._entries.move_to_end(key)
        return entry.events

    def recording(self, key: bytes | None) -> Recording | None:
        """Begins a new entry; None when nothing is to be kept."""
        return None if key is None or not self._max_bytes else Recording(self, key)

    def keep(self, recording: Recording) -> None:
        """Makes a complete recording an entry."""
        entry = _Entry(tuple(recording.events), recording.n_bytes)
        recording.give_up()
        if entry.events and recording.key not in self._entries:
            self._entries[recording.key] = entry
            self._entry_bytes += entry.n_bytes

    def make_room(self, n_bytes: int) -> bool:
        """Drops entries until a recording can have this much more; False when it cannot."""
        if self._recorded_bytes + n_bytes > self._max_bytes * MAX_RECORDED_SHARE:
            return False
        while self._entries and self.n_bytes + n_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._entry_bytes -= dropped.n_bytes
        self._recorded_bytes += n_bytes
        return True

    def take_back(self, n_bytes: int) -> None:
        """The room that a recording had is free again."""
        self._recorded_bytes -= n_bytes


class Recording:
    """The events of a call while they come; given up when there is no room for them.

    Attributes:
        key: of the entry it may become.
        events: all so far; none when it was given up.
        n_bytes: what they take; 0 when it was given up.
    """

    def __init__(self, cache: ResultCache, key: bytes) -> None:
        self.key = key
        self.events: list[CallEvent] = []
        self.n_bytes = 0
        self._cache = cache
        self._is_given_up = False

    def add(self, event: CallEvent, n_bytes: int) -> None:
        """One more event of about this size."""
        n_bytes += EVENT_OVERHEAD_BYTES
        if self._is_given_up:
            return
        if self._cache.make_room(n_bytes):
            self.n_bytes += n_bytes
            self.events.append(Finished() if isinstance(event, Finished) else event)
        else:
            self.give_up()

    def start_again(self) -> None:
        """The call is run anew."""
        self.give_up()
        self._is_given_up = False

    def give_up(self) -> None:
        """It is not needed any more, or there is no room for it."""
        self._cache.take_back(self.n_bytes)
        self._is_given_up = True
        self.events, self.n_bytes = [], 0

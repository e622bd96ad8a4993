"""Results of earlier calls. They follow from the weights and the request alone, so equal calls share them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tdb_server.domain.requests import InferenceSubRequest
from tdb_server.domain.results import CallEvent, Finished

MAX_ENTRY_BYTES = 4 * 1024 * 1024
ENTRY_OVERHEAD_BYTES = 1024


def cache_key(digest: str, sub_requests: Sequence[InferenceSubRequest]) -> bytes:
    """Equal for equal sub-requests to equal weights.

    Args:
        digest: of the weights.
        sub_requests: what is asked of them.
    """
    # The text of a frozen dataclass names every field, and numbers in full precision.
    return hashlib.sha256(f"{digest} {tuple(sub_requests)!r}".encode()).digest()


@dataclass(eq=False)
class Recording:
    """The events of a call while they come, for the cache; given up when they are too large."""

    key: bytes
    max_bytes: int
    events: list[CallEvent] = field(default_factory=list)
    n_bytes: int = ENTRY_OVERHEAD_BYTES

    def add(self, event: CallEvent, n_bytes: int) -> None:
        """One more event of about this size."""
        self.n_bytes += n_bytes
        if self.is_too_large:
            self.events.clear()
        else:
            self.events.append(Finished() if isinstance(event, Finished) else event)

    def start_again(self) -> None:
        """The call is run anew."""
        self.events.clear()
        self.n_bytes = ENTRY_OVERHEAD_BYTES

    @property
    def is_too_large(self) -> bool:
        """Not to be kept."""
        return self.n_bytes > self.max_bytes


class ResultCache:
    """Least recently used entries go first.

    Args:
        max_bytes: of all entries together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Recording] = OrderedDict()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What all entries take."""
        return self._n_bytes

    def get(self, key: bytes | None) -> Sequence[CallEvent] | None:
        """The events of an earlier equal call."""
        entry = None if key is None else self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(entry.key)
        return entry.events

    def recording(self, key: bytes | None) -> Recording | None:
        """Begins a new entry; None when nothing is to be kept."""
        if key is None or not self._max_bytes:
            return None
        return Recording(key, min(MAX_ENTRY_BYTES, self._max_bytes))

    def keep(self, recording: Recording) -> None:
        """Adds a complete entry; makes room by dropping others."""
        if recording.is_too_large or recording.key in self._entries:
            return
        self._entries[recording.key] = recording
        self._n_bytes += recording.n_bytes
        while self._n_bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._n_bytes -= dropped.n_bytes

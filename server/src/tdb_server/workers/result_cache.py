"""Results of earlier calls. They follow from the weights and the request alone, so equal calls share them.

But only calls of one owner do: whether a result is there tells that somebody has asked for it, so nobody may
see, by the answer or by its time, what others have asked. For the same reason it is the owner with the most
who loses an entry when room is needed: what others do does not show in what one with little still has.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.requests import InferenceSubRequest
from tdb_server.domain.results import CallEvent, Finished

MAX_RECORDED_SHARE = 0.25
"""How much of the cache may be taken by calls that are still running."""
EVENT_OVERHEAD_BYTES = 256


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Equal for equal sub-requests of one owner to equal weights.

    Attributes:
        owner: whose results they are.
        digest: of sub-requests and weights.
    """

    owner: str
    digest: bytes


def cache_key(owner: str, digest: str, sub_requests: Sequence[InferenceSubRequest]) -> CacheKey:
    """The key for an owner (see `Caller.cache_owner`), the digest of weights, and what is asked of them."""
    # The text of a frozen dataclass names every field, and numbers in full precision.
    return CacheKey(owner, hashlib.sha256(f"{digest} {tuple(sub_requests)!r}".encode()).digest())


@dataclass(frozen=True, slots=True)
class _Entry:
    events: tuple[CallEvent, ...]
    n_bytes: int


class ResultCache:
    """Results by owner and digest. The owner with the most bytes loses its least recently used entry first.

    Args:
        max_bytes: of everything together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[str, OrderedDict[bytes, _Entry]] = {}  # by owner, the least recently used first
        self._owner_bytes: Counter[str] = Counter()
        self._entry_bytes = 0
        self._recorded_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What all entries and recordings take."""
        return self._entry_bytes + self._recorded_bytes

    def get(self, key: CacheKey | None) -> Sequence[CallEvent] | None:
        """The events of an earlier equal call."""
        entries = None if key is None else self._entries.get(key.owner)
        if key is None or entries is None or key.digest not in entries:
            return None
        entries.move_to_end(key.digest)
        return entries[key.digest].events

    def recording(self, key: CacheKey | None) -> Recording | None:
        """Begins a new entry; None when nothing is to be kept."""
        return None if key is None or not self._max_bytes else Recording(self, key)

    def keep(self, recording: Recording) -> None:
        """Makes a complete recording an entry."""
        entry, key = _Entry(tuple(recording.events), recording.n_bytes), recording.key
        recording.give_up()
        if entry.events and self.get(key) is None:
            self._entries.setdefault(key.owner, OrderedDict())[key.digest] = entry
            self._owner_bytes[key.owner] += entry.n_bytes
            self._entry_bytes += entry.n_bytes

    def make_room(self, n_bytes: int) -> bool:
        """Drops entries until a recording can have this much more; False when it cannot."""
        if self._recorded_bytes + n_bytes > self._max_bytes * MAX_RECORDED_SHARE:
            return False
        while self._entries and self.n_bytes + n_bytes > self._max_bytes:
            self._drop_one()
        self._recorded_bytes += n_bytes
        return True

    def _drop_one(self) -> None:
        owner = max(self._owner_bytes, key=self._owner_bytes.__getitem__)
        _, dropped = self._entries[owner].popitem(last=False)
        self._owner_bytes[owner] -= dropped.n_bytes
        self._entry_bytes -= dropped.n_bytes
        if not self._entries[owner]:
            del self._entries[owner], self._owner_bytes[owner]

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

    def __init__(self, cache: ResultCache, key: CacheKey) -> None:
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

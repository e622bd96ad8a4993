"""What a worker has made of a call and its reader has not taken yet.

A worker never waits for a reader. Up to `max_bytes` of events lie in memory; what comes on top of that waits
in a `Spool` on disk. So a reader that stops costs a little memory and some disk, for no longer than the call
may take.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from tdb_server.domain.budget import Budget
from tdb_server.workers.spool import Spool

Event = TypeVar("Event")


class EventBuffer(Generic[Event]):
    """A queue of events for one reader, which takes its bytes from budgets that all share.

    Args:
        max_bytes: of events in memory. A single event may be larger.
        memory: for answers of all calls.
        disk: the same on disk.
        caller: whose call it is.
        reserved_bytes: on disk, which are the call's until it ends.

    Raises:
        OverLimit: so much disk is not left.
    """

    def __init__(
        self, max_bytes: int, memory: Budget, disk: Budget, caller: str, reserved_bytes: int = 0
    ) -> None:
        self._max_bytes = max_bytes
        self._memory = memory
        self._disk = disk
        self._caller = caller
        self._reserved_bytes = reserved_bytes
        self._bytes_on_disk = 0
        disk.take(caller, reserved_bytes)
        self._in_memory: deque[tuple[Event, int]] = deque()
        self._bytes_in_memory = 0
        self._spool: Spool[Event] | None = None
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def put(self, event: Event, n_bytes: int) -> asyncio.Future[None] | None:
        """Adds an event of about this size.

        Returns:
            For an event that goes to disk: done once it is there, with the `TdbError` for which it is not,
            and cancelled when nobody wants it any more.

        Raises:
            OverLimit: it would go to disk, and there is no room for it.
        """
        fits = self._bytes_in_memory == 0 or self._bytes_in_memory + n_bytes <= self._max_bytes
        written: asyncio.Future[None] | None = None
        if fits and self._spool is None and self._memory.try_take(self._caller, n_bytes):
            self._in_memory.append((event, n_bytes))
            self._bytes_in_memory += n_bytes
        else:
            self._use_disk(self._bytes_on_disk + n_bytes)
            if self._spool is None:
                self._spool = Spool()
            written = self._spool.put(event)
        self._changed.set()
        return written

    def fail(self, failure: BaseException) -> None:
        """The reader gets this once it has taken everything before it; of several failures the first."""
        self._failure = self._failure or failure
        self._changed.set()

    def break_off(self, failure: BaseException) -> None:
        """The reader gets this in place of everything that it has not taken."""
        try:
            self.clear()
        finally:
            self.fail(failure)

    async def get(self) -> Event:
        """Waits for the next event.

        Raises:
            TdbError: the failure, after the last event; or an event cannot be read from disk any more.
        """
        while True:
            if self._in_memory:
                event, n_bytes = self._in_memory.popleft()
                self._give_memory(n_bytes)
                return event
            if (spool := self._spool) is not None:
                try:
                    event = await spool.get()
                except Exception:
                    if self._spool is spool:
                        raise
                    continue  # dropped while it was read
                if self._spool is not spool:
                    continue
                if not spool:
                    self._spool = None
                    self._use_disk(0)
                return event
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def clear(self) -> None:
        """Drops all events, on disk too."""
        self._in_memory.clear()
        self._give_memory(self._bytes_in_memory)
        if self._spool is not None:
            self._spool.close()
            self._spool = None
            self._use_disk(0)

    def close(self) -> None:
        """The call has ended: nothing is held for it any more."""
        self.clear()
        self._disk.give_back(self._caller, self._reserved_bytes)
        self._reserved_bytes = 0

    def _give_memory(self, n_bytes: int) -> None:
        self._bytes_in_memory -= n_bytes
        self._memory.give_back(self._caller, n_bytes)

    def _use_disk(self, n_bytes: int) -> None:
        """Takes from the budget of disk what is more now, or gives back what is less."""
        more = max(n_bytes, self._reserved_bytes) - max(self._bytes_on_disk, self._reserved_bytes)
        if more > 0:
            self._disk.take(self._caller, more)
        else:
            self._disk.give_back(self._caller, -more)
        self._bytes_on_disk = n_bytes

"""What a worker has made of a call and its reader has not taken yet.

A worker never waits for a reader. Up to `max_bytes` of events lie in memory; what comes on top of that goes
to a temporary file without a name, and from there back in order. So a reader that stops costs a little
memory and some disk, for no longer than the call may take.
"""

from __future__ import annotations

import asyncio
import pickle
import tempfile
from collections import deque
from typing import IO, Generic, TypeVar

Event = TypeVar("Event")


class EventBuffer(Generic[Event]):
    """A queue of events with a bound on the memory it takes, for one reader.

    Args:
        max_bytes: of events in memory. A single event may be larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._in_memory: deque[tuple[Event, int]] = deque()
        self._bytes_in_memory = 0
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._n_in_file = 0
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def bytes_in_memory(self) -> int:
        """What the events in memory take."""
        return self._bytes_in_memory

    def put(self, event: Event, n_bytes: int) -> None:
        """Adds an event of about this size."""
        fits = self._bytes_in_memory == 0 or self._bytes_in_memory + n_bytes <= self._max_bytes
        if fits and self._n_in_file == 0:
            self._in_memory.append((event, n_bytes))
            self._bytes_in_memory += n_bytes
        else:
            self._write(event)
        self._changed.set()

    def fail(self, failure: Exception) -> None:
        """The reader gets this once it has taken everything before it."""
        self._failure = failure
        self._changed.set()

    async def get(self) -> Event:
        """Waits for the next event.

        Raises:
            Exception: the failure, after the last event.
        """
        while True:
            if self._in_memory:
                event, n_bytes = self._in_memory.popleft()
                self._bytes_in_memory -= n_bytes
                return event
            if self._file is not None:
                return self._read(self._file)
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    def clear(self) -> None:
        """Drops all events, and the file."""
        self._in_memory.clear()
        self._bytes_in_memory = 0
        self._close_file()

    def _write(self, event: Event) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_close_file`
        self._file.seek(0, 2)
        pickle.dump(event, self._file, protocol=5)
        self._n_in_file += 1

    def _read(self, file: IO[bytes]) -> Event:
        file.seek(self._read_at)
        event: Event = pickle.load(file)
        self._read_at = file.tell()
        self._n_in_file -= 1
        if self._n_in_file == 0:
            self._close_file()
        return event

    def _close_file(self) -> None:
        self._n_in_file = self._read_at = 0
        if self._file is not None:
            self._file.close()
            self._file = None

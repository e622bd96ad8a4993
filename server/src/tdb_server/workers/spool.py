"""Events that wait on disk for their reader: what is put in comes out in the same order.

The event loop never touches a file. One thread for the whole server does, one step after the other, so that
steps of one spool never overtake each other. The file has no name, and goes with the process at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Generic, TypeVar

from tdb_server.errors import Internal, OverLimit, TdbError

_log = logging.getLogger(__name__)
Event = TypeVar("Event")
Outcome = TypeVar("Outcome")
RETRY_SECONDS = 1.0
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What a system says when there is no room, and there may be some later."""
_THREAD = ThreadPoolExecutor(1, "spool")


class Closed(Exception):  # noqa: N818
    """Nothing is kept here any more."""


class Spool(Generic[Event]):
    """A queue of events on disk, for one reader. All methods are called on the event loop.

    The first failure is a `TdbError`: `OverLimit` where there is no room, else `Internal`, which is logged.
    After that, or once it is closed, there is nothing but `Closed`.
    """

    def __init__(self) -> None:
        self._n_events = 0
        self._unwritten: set[asyncio.Future[None]] = set()
        # From here on what the thread alone looks at.
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._n_in_file = 0
        self._is_closed = False

    def __len__(self) -> int:
        return self._n_events

    def put(self, event: Event) -> asyncio.Future[None]:
        """Adds an event.

        Returns:
            Done once the event is on disk; cancelled if the spool is closed before that.
        """
        written = self._on_thread(lambda: self._write(event))
        self._n_events += 1
        self._unwritten.add(written)
        written.add_done_callback(self._unwritten.discard)
        return written

    async def get(self) -> Event:
        """Takes the next event, of which there must be one."""
        event = await self._on_thread(self._read)
        self._n_events -= 1
        return event

    def close(self) -> None:
        """Drops what is left, and the file."""
        self._is_closed = True
        for written in self._unwritten.copy():
            written.cancel()
        with contextlib.suppress(RuntimeError):  # the program ends, and the file with it
            self._on_thread(self._close_file)

    def _on_thread(self, step: Callable[[], Outcome]) -> asyncio.Future[Outcome]:
        return asyncio.get_running_loop().run_in_executor(_THREAD, self._stepped, step)

    def _stepped(self, step: Callable[[], Outcome]) -> Outcome:
        try:
            return step()
        except Exception as error:
            is_first, self._is_closed = not self._is_closed, True
            raise (_failure(error) if is_first else Closed) from error

    def _write(self, event: Event) -> None:
        if self._is_closed:
            raise Closed
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_close_file`
        self._file.seek(0, 2)
        pickle.dump(event, self._file, protocol=5)
        self._file.flush()
        self._n_in_file += 1

    def _read(self) -> Event:
        if self._is_closed or self._file is None:
            raise Closed
        self._file.seek(self._read_at)
        event: Event = pickle.load(self._file)
        self._read_at = self._file.tell()
        self._n_in_file -= 1
        if self._n_in_file == 0:
            self._close_file()
        return event

    def _close_file(self) -> None:
        self._n_in_file = self._read_at = 0
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk says so once more
                file.close()


def _failure(error: Exception) -> TdbError:
    if isinstance(error, TdbError):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        message = f"the server has no room for an answer that waits for its reader: {error.strerror}"
        return OverLimit(message, "NO_ROOM_FOR_ANSWER", RETRY_SECONDS)
    return Internal.logged(_log, "an answer cannot wait on disk", error)

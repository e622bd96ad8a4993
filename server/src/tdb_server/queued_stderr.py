"""A stderr that nobody waits for: what is written to it goes out from a thread of its own.

A terminal that was stopped with Ctrl-S, a log shipper that is stuck, a pipe that nobody empties: a write to
them blocks for ever. Here it blocks the thread. What finds no room in the queue meanwhile is dropped and
counted.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)
MAX_QUEUED_BYTES = 8 * 2**20
LAST_WORDS_SECONDS = 2.0
"""How long the end of the process waits until what is queued is written."""


class QueuedStream(io.TextIOBase):
    """Text for a descriptor, written by a thread in the order in which it came.

    Python's own object for stderr has a lock, which a thread that is stuck in a write would hold for ever,
    and for which the interpreter waits when it ends. So the thread writes to the descriptor itself.

    Args:
        descriptor: where the text goes; stays open.
        max_queued_bytes: of text that waits to be written. A single piece may be larger.

    Attributes:
        n_dropped: pieces of text, lines mostly, that found no room or could not be written.
        on_dropped: called by the thread with the number of pieces that were dropped, once others are
            written again.
    """

    encoding = "utf-8"

    def __init__(self, descriptor: int, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.n_dropped = 0
        self.on_dropped: Callable[[int], None] = lambda n_dropped: None
        self._descriptor = descriptor
        self._max_queued_bytes = max_queued_bytes
        self._pieces: deque[bytes] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        # A daemon, as it may be stuck in a write when the process ends.
        threading.Thread(target=self._write_out, name="stderr", daemon=True).start()

    def fileno(self) -> int:
        """The descriptor. What is written to it by others may block."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether somebody looks at it."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Queues a piece of text, or drops it; never waits."""
        piece = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._pieces and self._queued_bytes + len(piece) > self._max_queued_bytes:
                self.n_dropped += 1
            elif piece:
                self._pieces.append(piece)
                self._queued_bytes += len(piece)
                self._changed.notify_all()
        return len(text)

    def finish(self, timeout_seconds: float = LAST_WORDS_SECONDS) -> None:
        """Waits until everything is written, for no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queued_bytes, timeout_seconds)

    def _write_out(self) -> None:
        n_told = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces)
                piece = self._pieces.popleft()
            is_written = self._write_whole(piece)
            with self._changed:
                self._queued_bytes -= len(piece)
                self.n_dropped += not is_written
                n_new = self.n_dropped - n_told
                self._changed.notify_all()
            if n_new and is_written and self._queued_bytes <= self._max_queued_bytes // 2:
                n_told += n_new
                self.on_dropped(n_new)

    def _write_whole(self, piece: bytes) -> bool:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:  # nobody has the other end open, or the disk is full
            return False
        return True


def queue_stderr() -> QueuedStream:
    """Puts a queue in front of this process's stderr, for whatever is written to it from Python.

    Libraries in C go on writing to the descriptor itself. Where that is a pipe or a terminal, their writes no
    longer block: what finds no room is lost.
    """
    stream = QueuedStream(os.dup(2))
    stream.on_dropped = _tell
    atexit.register(stream.finish)
    sys.stderr = stream
    kind = os.fstat(2).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
        # Opened anew, as not to wait is a property that all who share an opened file have in common. Not so
        # for plain files, of which each opening has a position of its own; and sockets cannot be opened.
        with contextlib.suppress(OSError):
            anew = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(anew, 2)
            os.close(anew)
    return stream


def n_dropped_lines() -> int:
    """How many lines this process has dropped so far."""
    return sys.stderr.n_dropped if isinstance(sys.stderr, QueuedStream) else 0


def _tell(n_dropped: int) -> None:
    _log.warning("%d lines of the log were dropped, as nobody took them", n_dropped)

"""Files that are read again when they change, by a thread: a dead file server holds up no call."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 1.0
MAX_FILE_BYTES = 4 * 2**20
Stamp = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Compares what the file system says about files with what it said before.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._stamp = self._look()

    def has_changed(self) -> bool:
        """Whether any of the files is another than at the last look. Each change is told once."""
        before, self._stamp = self._stamp, self._look()
        return self._stamp != before

    def _look(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


class FileReader:
    """Calls those who have files again and again, from a thread of its own.

    Args:
        looks: each looks at its files and reads those that have changed; raises nothing that it can foresee.
    """

    def __init__(self, looks: Sequence[Callable[[], None]]) -> None:
        self._looks = tuple(looks)
        self._wake = threading.Event()
        self._is_stopped = False

    def start(self) -> None:
        """Looks once a second from here on. Without anybody to call it does nothing."""
        if self._looks:
            threading.Thread(target=self._keep_looking, name="files", daemon=True).start()

    def look_now(self) -> None:
        """Looks at once, and does not wait for it."""
        self._wake.set()

    def stop(self) -> None:
        """Looks no more."""
        self._is_stopped = True
        self._wake.set()

    def _keep_looking(self) -> None:
        while not self._is_stopped:
            for look in self._looks:
                try:
                    look()
                except Exception:  # another look may go well
                    _log.exception("looking at files that may have changed failed")
            self._wake.wait(SECONDS_BETWEEN_LOOKS)
            self._wake.clear()


def read_regular_file(path: Path) -> bytes:
    """The content of a file that is a plain one and of a sensible size: a pipe would be waited for for ever.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return content


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

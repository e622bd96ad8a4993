"""Files that are read again when they change, by a thread: a dead file server holds up no call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 1.0
MAX_FILE_BYTES = 4 * 2**20
"""The most that a file with tokens or certificates may have."""
Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp_of(paths: Sequence[Path]) -> Stamp:
    """What the file system says about files: another stamp is another content; None for one that is gone."""
    stamp: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
            stamp.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            stamp.append(None)
    return tuple(stamp)


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

"""Notices that files have changed, without looking more than once a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 1.0
Stamp = tuple[tuple[int, int, int] | None, ...]


class FileWatch:
    """Compares what the file system says about files with what it said before.

    Args:
        paths: of the files.
        clock: monotonic seconds.
    """

    def __init__(self, paths: Sequence[Path], clock: Callable[[], float]) -> None:
        self._paths = tuple(paths)
        self._clock = clock
        self._looked_at = clock()
        self._stamp = self._look()

    def has_changed(self) -> bool:
        """Whether any of the files is another than at the last look. Each change is told once."""
        now = self._clock()
        if now - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked_at = now
        before, self._stamp = self._stamp, self._look()
        return self._stamp != before

    def _look(self) -> Stamp:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

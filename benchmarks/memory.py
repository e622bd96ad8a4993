"""Memory of the processes that compute, read from Linux's /proc; None where that does not exist.

What counts is anonymous memory: weights that are mapped from their files, and code, are left out.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.005
_LINE = re.compile(r"^(\w+):\s+(\d+) kB", re.MULTILINE)


def anonymous_bytes(pid: int) -> int | None:
    """Anonymous memory that a process has now."""
    return _read(Path(f"/proc/{pid}/status")).get("RssAnon")


def private_bytes(pid: int) -> int | None:
    """Memory that a process shares with no other, its files' pages included."""
    found = _read(Path(f"/proc/{pid}/smaps_rollup"))
    if not found:
        return None
    return found.get("Private_Clean", 0) + found.get("Private_Dirty", 0)


class PeakMemory:
    """While it lasts, watches a process: `with PeakMemory(pid) as peak: ...; peak.n_bytes`.

    A thread looks every few milliseconds, which costs time: not to be used around what is timed.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.n_bytes: int | None = None

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        now = anonymous_bytes(self._pid)
        if now is not None:
            self.n_bytes = max(now, self.n_bytes or 0)


def _read(path: Path) -> dict[str, int]:
    """The lines of a file that give kibibytes, in bytes; none where the process is gone."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    return {name: int(kibibytes) * 1024 for name, kibibytes in _LINE.findall(text)}

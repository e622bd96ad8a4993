"""How loading goes, for people who watch the terminal or read the log."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import TextIO

_log = logging.getLogger(__name__)
BAR_WIDTH = 30
SECONDS_BETWEEN_LINES = 1.0


class LoadingReport:
    """Writes a bar to a terminal, or a line now and then to anything else. Only the first worker is reported.

    Args:
        stream: where to; None for stderr.
        to_log: whether to log lines instead, for logs that programs read.
    """

    def __init__(self, stream: TextIO | None = None, *, to_log: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty() and not to_log
        self._to_log = to_log
        self._stage = ""
        self._written_at = 0.0

    def show(self, worker_index: int, stage: str, fraction: float) -> None:
        """A worker is at `fraction` of a stage."""
        if worker_index != 0:
            return
        is_new = stage != self._stage
        now = time.monotonic()
        if self._is_terminal:
            filled = round(BAR_WIDTH * fraction)
            start = "\n" if is_new and self._stage else "\r"
            self._write(f"{start}{stage:<28} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {fraction:4.0%}")
        elif is_new or now - self._written_at >= SECONDS_BETWEEN_LINES or fraction >= 1:
            self._write_line(f"{stage}: {fraction:.0%}")
            self._written_at = now
        self._stage = stage

    def say(self, line: str) -> None:
        """Writes a line of its own."""
        self._write_line(("\n" if self._is_terminal and self._stage else "") + line)
        self._stage = ""

    def _write_line(self, line: str) -> None:
        if self._to_log:
            _log.info("%s", line)
        else:
            self._write(line + "\n")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # whoever watched has gone; the server goes on
            self._stream.write(text)
            self._stream.flush()

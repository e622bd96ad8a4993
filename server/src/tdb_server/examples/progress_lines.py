"""How a run of hours says how far it is."""

from __future__ import annotations

import sys
import time

SECONDS_BETWEEN = 10.0


class ExamplesProgress:
    """Writes a line to stderr at most every few seconds, and when something ends."""

    def __init__(self) -> None:
        self._written = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Is told what is being done, and the fraction of it that is done."""
        now = time.monotonic()
        if now - self._written >= SECONDS_BETWEEN or fraction >= 1:
            self._written = now
            sys.stderr.write(f"{100 * fraction:3.0f}% {stage}\n")

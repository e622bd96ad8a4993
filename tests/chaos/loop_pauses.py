"""How long a server's event loop is held up by one thing, whatever else the machine does.

The loop's lateness (`tdb_event_loop_lag_seconds`) is wall time: on a machine that others use too it says as
much about them. So a few lines that every Python runs at its start measure the processor time of each
callback, which is what the loop itself does before it looks at anybody else. What it does not show is a
thread that keeps the interpreter's lock; that shows in the lateness, for which `test_costly_requests.py` has
a bound.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LONGEST_SECONDS = 0.1
FOLDER_VARIABLE = "TDB_TEST_LOOP_PAUSES"
MEASURE = f"""
import os, sys, time
NOTED_SECONDS = {LONGEST_SECONDS / 4}
folder = os.environ.get({FOLDER_VARIABLE!r})
def measured(handle):
    what, begun_at = handle._callback, time.thread_time()
    try:
        return run(handle)
    finally:
        seconds = time.thread_time() - begun_at
        if seconds > NOTED_SECONDS:
            what = " ".join(repr(what).split())
            with open(f"{{folder}}/{{os.getpid()}}", "a") as noted:
                noted.write(f"{{seconds:.6f}} {{what[:300]}}\\n")
if folder and "serve" in sys.orig_argv:
    import asyncio
    run, asyncio.events.Handle._run = asyncio.events.Handle._run, measured
"""


@dataclass(frozen=True, slots=True)
class Pause:
    """One callback that took its time.

    Attributes:
        seconds: of a processor.
        callback: what it was.
    """

    seconds: float
    callback: str


@dataclass(frozen=True, slots=True)
class LoopPauses:
    """Of all servers that are started with the variables of `environment`.

    Attributes:
        folder: where they note them.
    """

    folder: Path

    def environment(self) -> dict[str, str]:
        """Writes the lines down; returns what has a server run them."""
        (self.folder / "sitecustomize.py").write_text(MEASURE)
        return {**os.environ, "PYTHONPATH": str(self.folder), FOLDER_VARIABLE: str(self.folder)}

    def forget(self, pid: int | None = None) -> None:
        """Drops what a process has noted, such as while it started; without one, what all have."""
        for noted in self._files(pid):
            noted.unlink(missing_ok=True)

    def longest(self, pid: int | None = None) -> Pause:
        """The longest that a process, or any, has noted since."""
        lines = [line for noted in self._files(pid) for line in noted.read_text().splitlines()]
        pauses = [Pause(float(seconds), what) for seconds, _, what in (one.partition(" ") for one in lines)]
        return max(pauses, key=lambda one: one.seconds, default=Pause(0.0, "none was noted"))

    def _files(self, pid: int | None) -> list[Path]:
        return [*self.folder.glob("[0-9]*" if pid is None else str(pid))]

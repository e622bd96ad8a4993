"""What the operating system says of a process: whether it does anything, or waits for its turn."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

IS_RUNNABLE, WAITS_FOR_DISK = "R", "D"


@dataclass(frozen=True, slots=True)
class ProcessActivity:
    """One look at a process.

    Attributes:
        state: of its main thread, as `proc(5)` abbreviates it: R runs or could run, D waits for a disk or a
            device, S sleeps, T is stopped...
        cpu_seconds: processor time that all its threads have used.
    """

    state: str
    cpu_seconds: float


def process_activity(pid: int) -> ProcessActivity | None:
    """Looks at a process; None where there is none, or on systems without `/proc`."""
    try:
        # The name in parentheses may contain anything; what follows it are fields 3 to 52.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None
    return ProcessActivity(fields[0], ticks / os.sysconf("SC_CLK_TCK"))

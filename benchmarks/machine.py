"""Facts about the machine and the software, and how much of it others used while we measured."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "grpcio", "protobuf", "numpy")
ROOT = Path(__file__).parent.parent


def machine_facts(device: str, n_threads: int) -> dict[str, object]:
    """What a reader needs to know to compare figures."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": n_threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


class OthersLoad:
    """Which share of the machine's cores other programs used since this was made; Linux only."""

    def __init__(self) -> None:
        self._before = _busy_and_all_seconds()
        self._own_before = _own_seconds()

    def share(self) -> float | None:
        """0 for a machine of our own, 1 for one that had no time for us. Ended servers count as ours."""
        now = _busy_and_all_seconds()
        if now is None or self._before is None:
            return None
        busy, everything = now[0] - self._before[0], now[1] - self._before[1]
        own = _own_seconds() - self._own_before
        return max(0.0, busy - own) / everything if everything else None


def _busy_and_all_seconds() -> tuple[float, float] | None:
    """Of all cores together, since the machine started; time that the hypervisor took counts as busy."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, idle, io_wait, irq, soft_irq, steal = map(int, path.read_text().split()[1:9])
    busy = user + nice + system + irq + soft_irq + steal
    ticks = os.sysconf("SC_CLK_TCK")
    return busy / ticks, (busy + idle + io_wait) / ticks


def _own_seconds() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, kinds))


def _commit() -> str | None:
    """The commit, with `+` where the working tree differs; None outside of git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)

"""How much memory calls may take on a device: most of what is free there when the model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

SHARE = 0.8
"""So much of what is free is for calls. The rest is for other programs, and the front's queue and cache."""
_CGROUPS = Path("/sys/fs/cgroup")
_VERSION_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")


def room_bytes(device: str, n_alike: int, *, is_dealt_out: bool) -> int:
    """What one worker's batch may take.

    Args:
        device: as torch names it.
        n_alike: workers that are configured with the same device, this one included.
        is_dealt_out: whether they are dealt out over all GPUs of the machine.
    """
    if not device.startswith("cuda"):
        return int(SHARE * _free_host_bytes()) // n_alike
    import torch

    n_free, _ = torch.cuda.mem_get_info(device)
    n_free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    n_sharing = -(-n_alike // torch.cuda.device_count()) if is_dealt_out else n_alike
    return int(SHARE * n_free) // n_sharing


def _free_host_bytes() -> int:
    """What programs may still take of this machine's memory, or of their container's."""
    n_physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = [1024 * one for one in _values(Path("/proc/meminfo"), "MemAvailable:")]
    return min([n_physical, *available, *_left_in_cgroups(_own_cgroup(Path("/proc/self/cgroup")))])


def _own_cgroup(groups: Path) -> Path:
    """The folder of this process's control group; that of all where it is not known."""
    lines = groups.read_text().splitlines() if groups.is_file() else []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return _CGROUPS / own.lstrip("/")


def _left_in_cgroups(folder: Path) -> list[int]:
    """What is left in a control group and those around it, where they have limits: of version 2, or of 1.

    Pages of files that were read count as taken there, and are given up when they are needed.
    """
    found = []
    for group in (folder, *folder.parents):
        for most, taken in (("memory.max", "memory.current"), _VERSION_1):
            limit, held = _values(group / most), _values(group / taken)
            files = _values((group / most).with_name("memory.stat"), "inactive_file")
            if limit and held:  # a group without a limit says "max"
                found.append(max(0, limit[0] - held[0] + sum(files)))
    return found


def _values(path: Path, name: str = "") -> list[int]:
    """The numbers after a name in a file of the system, a line each; none where there is no such file."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    values = [words[1] for words in lines if words[0] == name] if name else [words[0] for words in lines]
    return [int(one) for one in values if one.isdecimal()]

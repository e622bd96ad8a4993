"""What a call makes torch do: its operations, what is launched on a GPU, and where it waits for the GPU."""

from __future__ import annotations

import linecache
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.table import table

N_LISTED = 25
RUNTIME_CALLS = ("cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaDeviceSynchronize")
ROOT = Path(__file__).parent.parent


def operations(call: Callable[[], object]) -> str:
    """What takes most of the processor's time; of a GPU, how long it was busy, and what it was told.

    Args:
        call: run once before, and once while it is watched.
    """
    call()
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as watched:
        call()
    averages = watched.key_averages()
    parts = [averages.table(sort_by="self_cpu_time_total", row_limit=N_LISTED, max_name_column_width=40)]
    if torch.cuda.is_available():
        counts = {one.key: one.count for one in averages}
        n_launched = sum(count for name, count in counts.items() if "LaunchKernel" in name)
        busy = sum(one.self_device_time_total for one in averages if one.device_type.name == "CUDA")
        calls = ", ".join(f"{name} {counts.get(name, 0)}" for name in RUNTIME_CALLS[1:])
        parts.append(f"GPU busy {busy / 1e3:.2f} ms; kernels launched {n_launched}, {calls}")
    return "\n".join(parts)


def synchronizing_lines(call: Callable[[], object]) -> str:
    """How often a call waits for the GPU, by the line that does; empty where there is no GPU."""
    if not torch.cuda.is_available():
        return ""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter((one.filename, one.lineno) for one in caught if "synchroniz" in str(one.message))
    rows = [
        [_shown(filename), str(line), str(count), linecache.getline(filename, line).strip()[:80]]
        for (filename, line), count in lines.most_common()
    ]
    return f"waits for the GPU: {lines.total()}\n\n" + table(["file", "line", "times", "what"], rows)


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name

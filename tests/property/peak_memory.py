"""How much memory torch had in use at the worst moment of a piece of work, on a CPU.

Torch's profiler is told of everything that its allocator gives out and gets back, also what kernels need for
themselves. Nothing is known of who asked for it, so whatever is measured can be rewritten.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes in use at the worst moment of some work, beyond those in use before it."""
    gc.disable()  # what others left behind in cycles is not given back meanwhile
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
    finally:
        gc.enable()
    results = profiler.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [one for one in results.kineto_results.events() if one.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak

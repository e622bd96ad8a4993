"""Keeps the front's memory from growing, however long it serves."""

from __future__ import annotations

import contextlib
import ctypes
import gc

_M_ARENA_MAX = -8
"""As glibc's `malloc.h` has it."""
_N_ARENAS = 2


def keep_few_arenas() -> None:
    """Has the C library take all threads' memory from few arenas; to be called before there are threads.

    By default every thread gets one of its own, which keeps what that thread's largest answer once needed:
    the front grew by a tenth in twenty minutes of mixed calls.
    """
    with contextlib.suppress(AttributeError, TypeError, OSError):  # other systems, other C libraries
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _N_ARENAS)


def keep_what_is_loaded() -> None:
    """Tells the garbage collector that what is there stays: to look through it holds up the event loop."""
    gc.collect()
    gc.freeze()

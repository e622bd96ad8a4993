"""What the signals mean that a server gets.

SIGTERM and SIGINT (Ctrl-C) stop it in order. SIGHUP means two things: a terminal sends it when it is closed,
and an operator sends it to a service that should read its files again, as `systemctl reload` does.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_handled(reload: Callable[[], None]) -> Iterator[asyncio.Event]:
    """Handles signals for as long as the context lasts.

    Args:
        reload: called on SIGHUP where it is no terminal that was closed.

    Yields:
        An event that is set when the server is told to stop.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    # `nohup` has it ignored: then a closed terminal is no reason to stop.
    stops_on_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
    for one in STOPPING:
        loop.add_signal_handler(one, stopped.set)
    loop.add_signal_handler(signal.SIGHUP, stopped.set if stops_on_hangup else reload)
    try:
        yield stopped
    finally:
        for one in (*STOPPING, signal.SIGHUP):
            loop.remove_signal_handler(one)
        # A second one must not kill the server while it ends; Python's own handling would.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal, whose end is told by SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True

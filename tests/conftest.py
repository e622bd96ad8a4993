"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_sessionstart() -> None:
    """Interrupts reach the processes that tests start, also where a shell runs the tests in the background.

    A shell has such jobs ignore interrupts, and whatever a process ignores its children ignore too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

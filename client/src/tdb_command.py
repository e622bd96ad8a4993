"""Starts the command `tdb`.

It stands beside the package, because to import that takes a moment, in which an interrupt may come as well;
and the standard streams have to be open before.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def main() -> int:
    """Runs the command and returns its exit code."""
    _open_standard_streams()
    _end_at_once_when_interrupted()
    from tdb_client.cli import main as run

    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _end_at_once_when_interrupted()  # while libraries are taken down


def _end_at_once_when_interrupted() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as for what shells run in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _open_standard_streams() -> None:
    """Opens those of the standard streams that were closed: else sockets and files would get their numbers.

    Writing to stdout fails all the same: what was to be printed is not lost without a word.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115

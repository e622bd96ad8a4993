"""Starts the command `tdb-server`, and sees to it that it ends in order, without a stack trace.

Exit codes: 0 told to stop, 1 cannot serve (one line on stderr says why), 2 the command line makes no sense,
130 interrupted before it served, 141 nobody reads what it prints. `--log-level debug` logs where it failed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED, NOBODY_READS = 130, 141


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits."""
    _open_standard_streams()
    _end_at_once_when_interrupted()  # while libraries are imported; a running server stops in order
    try:
        from tdb_server.command import run

        run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(NOBODY_READS)
    except Exception as error:
        logging.getLogger(__name__).debug("failed", exc_info=True)
        sys.exit(f"tdb-server: {_one_line(error)}")
    finally:
        _end_at_once_when_interrupted()  # while they are taken down
        _flush()


def _one_line(error: Exception) -> str:
    """What happened; of what nobody foresaw, also the kind."""
    from tdb_server.errors import TdbError

    kind = "" if isinstance(error, TdbError | OSError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _flush() -> None:
    """Writes what is left to be written. Exits where that is not possible, without trying once more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        is_pipe = isinstance(error, BrokenPipeError)
        sys.exit(NOBODY_READS if is_pipe else f"tdb-server: cannot write: {error.strerror}")


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
            mode = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            os.set_inheritable(os.open(os.devnull, mode), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()

"""The command `tdb`: asks a transformer debugger server and prints what it says.

Exit codes: 0 done, 1 the call failed (one line on stderr says why), 2 the command line makes no sense,
3 `tdb doctor` found a problem, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tdb_client.cli.arguments import parse
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.errors import TdbError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; exits by itself when the command line makes no sense."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # tokens may not fit the terminal's encoding
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        with _warnings_in_one_line():
            code: ExitCode = options.run(options)
        sys.stdout.flush()
    except (TdbError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.FAILED
        _say(str(error))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """The library's warnings as a user of a command wants to read them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        _say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _say(text: str) -> None:
    print(f"tdb: {' '.join(text.split())}", file=sys.stderr)

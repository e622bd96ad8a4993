"""The command `tdb`: asks a transformer debugger server and prints what it says.

Exit codes: 0 done, 1 the call failed (one line on stderr says why), 2 the command line makes no sense,
3 `tdb doctor` found a problem, 130 interrupted, 141 nobody reads what it prints.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tdb_client.cli.arguments import parse
from tdb_client.cli.exit_codes import ExitCode
from tdb_client.cli.flags import error_text
from tdb_client.errors import TdbError, in_one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; exits by itself when the command line makes no sense."""
    try:
        code = _outcome(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as ended:
        sys.exit(_flushed(int(ended.code or 0)))
    return _flushed(code)


def _outcome(arguments: Sequence[str]) -> int:
    """Runs the command. Whatever goes wrong is a line on stderr; a stack trace is for those who want it."""
    options = argparse.Namespace()
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # tokens may not fit the terminal's encoding
        with _warnings_in_one_line():
            options = parse(arguments)
            code: ExitCode = options.run(options)
    except BrokenPipeError:
        return ExitCode.NOBODY_READS
    except TdbError as error:
        _say(error_text(error, options))
        return ExitCode.FAILED
    except OSError as error:
        _say(str(error))
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if os.environ.get("TDB_TRACEBACK"):
            raise
        _say(
            f"{type(error).__name__}: {error} (unforeseen: please report it with what TDB_TRACEBACK=1 prints)"
        )
        return ExitCode.FAILED
    return code


def _flushed(code: int) -> int:
    """The exit code, when all that was printed is written as well."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more
        if isinstance(error, BrokenPipeError):
            return ExitCode.NOBODY_READS
        if not code:
            _say(f"cannot write: {error.strerror}")
        return code or ExitCode.FAILED
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
    with suppress(OSError):  # nobody listens
        print(f"tdb: {in_one_line(text)}", file=sys.stderr)

"""What `tdb` ends with, for scripts."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Documented in `tdb --help`; the numbers stay as they are."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PROBLEM = 3
    INTERRUPTED = 130
    NOBODY_READS = 141


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the call failed; one line on stderr says why",
    ExitCode.USAGE: "the command line makes no sense",
    ExitCode.PROBLEM: "doctor found a problem",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.NOBODY_READS: "whoever read what is printed has gone, as with `| head`",
}

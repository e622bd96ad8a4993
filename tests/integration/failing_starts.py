"""Servers that must not start."""

from __future__ import annotations

import subprocess
import sys


def serve_and_fail(*flags: str) -> subprocess.CompletedProcess[str]:
    """How it ended: with one line that says why, after those that say how far loading was."""
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", "0", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines(keepends=True)
    ended.stderr = "".join(line for line in lines if not line.endswith("%\n"))
    assert ended.stderr.count("\n") == 1
    return ended

"""Servers that must not start."""

from __future__ import annotations

import subprocess
import sys


def serve_and_fail(*flags: str) -> subprocess.CompletedProcess[str]:
    """How it ended: with one line that says why."""
    ended = subprocess.run(
        [sys.executable, "-m", "tdb_server", "serve", "--port", "0", *flags],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    return ended

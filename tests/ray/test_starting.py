"""Servers that cannot start say why in one line, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import TINY_MODEL

FAIL_SECONDS = 60.0


@pytest.mark.usefixtures("no_ray_around")
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--model", "/nowhere/model"), "/nowhere/model"),
        (("--model", str(TINY_MODEL), "--ray-address", "127.0.0.1:1"), "no Ray at 127.0.0.1:1"),
    ],
)
def test_why_it_cannot_start(flags: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tdb_server", "serve", "--port", "0", "--device", "cpu", "--pool", "ray"]
    ended = subprocess.run(
        [*command, *flags], cwd=tmp_path, capture_output=True, text=True, timeout=FAIL_SECONDS, check=False
    )
    *_, last = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert last.startswith("tdb-server: ")
    assert reason in last


def test_other_workers_need_no_ray(tmp_path: Path) -> None:
    """Importing all that a server without `--pool ray` imports."""
    program = "import sys, tdb_server.command, tdb_server.workers.pool; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0

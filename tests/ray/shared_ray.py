"""A Ray cluster on loopback that no server started, for fronts that share its replicas."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.vitals import is_running, wait_until
from tests.ray.processes import descendants

START_SECONDS, GONE_SECONDS = 60.0, 15.0
OBJECT_STORE_BYTES = 200_000_000
ENVIRONMENT = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
"""Variables of whoever uses it. The first makes it listen on loopback alone, on any system."""


@dataclass(frozen=True)
class SharedRay:
    """A Ray that runs.

    Attributes:
        address: where fronts find it.
        pid: of the process that everything of it is below.
        folder: where it writes.
    """

    address: str
    pid: int
    folder: Path

    def serve_log_lines(self, words: str) -> list[str]:
        """Lines with these words that Ray Serve's controller has logged."""
        logs = self.folder.glob("session_latest/logs/serve/controller_*.log")
        return [line for log in logs for line in log.read_text().splitlines() if words in line]


@contextmanager
def running_ray(folder: Path, n_cpus: int = 4) -> Iterator[SharedRay]:
    """Starts Ray, with a token that processes started meanwhile inherit, and ends all of it afterwards.

    Args:
        folder: for its log.
        n_cpus: one for each replica that may run at the same time, however many there are.
    """
    log = folder / "ray.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--num-cpus={n_cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += ["--include-dashboard=false", "--disable-usage-stats"]
    with (
        pytest.MonkeyPatch.context() as environment,
        # Not below the tests' folder: the names of its sockets would be too long.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as own_folder,
    ):
        command += [f"--temp-dir={own_folder}"]
        for name, value in zip(ENVIRONMENT, ("0", "token", secrets.token_hex(32)), strict=True):
            environment.setenv(name, value)
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until(lambda: b"Ray runtime started" in log.read_bytes(), START_SECONDS)
            yield SharedRay(f"127.0.0.1:{port}", process.pid, Path(own_folder))
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    below = descendants(process.pid)
    process.kill()
    process.wait()
    for pid in below:  # those that do not end with it at once
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in below), GONE_SECONDS)

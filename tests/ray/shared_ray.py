"""A Ray cluster on loopback that no server started, for fronts that share its replicas."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.vitals import is_running, wait_until
from tests.ray.processes import descendants

START_SECONDS, GONE_SECONDS = 60.0, 15.0
OBJECT_STORE_BYTES = 200_000_000


@dataclass(frozen=True)
class SharedRay:
    """Where fronts find it, and the process that everything of it is below."""

    address: str
    pid: int


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
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on loopback alone
        environment.setenv("RAY_AUTH_MODE", "token")
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            wait_until(lambda: b"Ray runtime started" in log.read_bytes(), START_SECONDS)
            yield SharedRay(f"127.0.0.1:{port}", process.pid)
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

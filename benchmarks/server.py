"""The server that is measured: a real process on loopback, ended by its process id."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 300.0
STOP_SECONDS = 20.0
SETTLED_SECONDS = 0.5
MAX_BYTES = 14 * 2**30
"""Memory that a server process, front or worker, may take on a CPU; more fails the call, not the machine."""


@dataclass(frozen=True)
class BenchServer:
    """A server that is ready.

    Attributes:
        address: `HOST:PORT`.
        front_pid: the process that takes calls.
        worker_pids: the processes in which it computes.
        metrics_port: where it tells Prometheus; None where that was not asked for.
    """

    address: str
    front_pid: int
    worker_pids: tuple[int, ...]
    metrics_port: int | None = None


@contextmanager
def running_server(
    model: Path,
    *flags: str,
    device: str,
    n_threads: int,
    autoencoders: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[BenchServer]:
    """Starts a server without a result cache and ends it after use.

    Args:
        model: the model's folder.
        flags: further ones for `tdb-server serve`.
        device: where it computes.
        n_threads: CPU threads per worker.
        autoencoders: folders of autoencoders to load.
        environment: variables to add to this process's.

    Raises:
        RuntimeError: the server did not get ready; says what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="tdb-bench-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "server.log")
        command = [sys.executable, "-m", "tdb_server", "serve", "--model", str(model), "--port", "0"]
        command += ["--device", device, "--threads", str(n_threads), "--cache-bytes", "0"]
        command += ["--max-activation-bytes", "64GiB", "--log-level", "warning", "--ready-file", str(ready)]
        command += [word for one in autoencoders for word in ("--autoencoder", str(one))]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *flags], stdout=output, stderr=output, env={**os.environ, **(environment or {})}
            )
        try:
            if device == "cpu" and sys.platform == "linux":  # the workers, started later, inherit it
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
            ports = _wait_until_ready(process, ready, log)
            address = f"127.0.0.1:{ports['grpc_port']}"
            pids = _worker_pids(process.pid)
            _wait_until_settled(pids)
            yield BenchServer(address, process.pid, pids, ports.get("metrics_port"))
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, int]:
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not get ready:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)
    ports: dict[str, int] = json.loads(ready.read_text())
    return ports


def _wait_until_settled(worker_pids: Sequence[int]) -> None:
    """Until the workers have prepared, in their idle time, what they can for later calls."""
    deadline = time.monotonic() + READY_SECONDS
    before = None
    while time.monotonic() < deadline:
        now = [processor_seconds(pid) for pid in worker_pids]
        if now == before:
            return
        before = now
        time.sleep(SETTLED_SECONDS)


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _worker_pids(front_pid: int) -> tuple[int, ...]:
    """The server's children whose title says that they are workers; none where there is no /proc."""
    path = Path(f"/proc/{front_pid}/task/{front_pid}/children")
    pids = [int(pid) for pid in path.read_text().split()] if path.exists() else []
    return tuple(pid for pid in pids if b"tdb-worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

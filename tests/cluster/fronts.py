"""Servers behind a balancer. A front that is started again listens where it listened before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.metrics_page import reading
from tests.running_server import TINY_MODEL, RunningServer, start, stop

SERVICE = "transformer_debugger.v1.TransformerDebuggerService"
FLAGS = (
    *("--cache-bytes", "0", "--metrics-port", "0", "--log-level", "info", "--max-call-seconds", "120"),
    *("--grace-seconds", "30", "--max-calls-per-caller", "1000", "--max-response-bytes", "64MiB"),
    "--listen-when-ready",
)
"""All calls that come through one connection of a balancer count as one caller's: hence their number.

nginx would send calls to a front that is still loading its model, were its port open already."""


class Front:
    """One server, and its successors on the same ports.

    Args:
        folder: for its files.
        flags: of the server, beside those that all fronts have.
        model: a folder.
    """

    def __init__(self, folder: Path, flags: Sequence[str] = (), model: Path = TINY_MODEL) -> None:
        self._folder, self._flags, self._model = folder, tuple(flags), model
        self._n_starts = 0
        self.port = self.http_port = 0
        self.server: RunningServer

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        folder = self._folder / f"start-{self._n_starts}"
        folder.mkdir(parents=True)
        ports = ("--port", str(self.port), "--http-port", str(self.http_port))
        self.server = start(folder, *ports, *FLAGS, *self._flags, model=self._model)
        self._n_starts += 1
        self.port, self.http_port = self.server.port, self.server.http_port or 0

    @property
    def is_running(self) -> bool:
        return self.server.process.poll() is None

    def stop(self) -> None:
        """SIGTERM: it finishes what it has begun."""
        self.server.channel.close()
        assert self.server.terminate() == 0

    def kill(self) -> None:
        """SIGKILL: whatever it was doing is lost."""
        self.server.process.kill()
        self.server.process.wait()

    def n_calls(self, method: str) -> float:
        """Calls of the debugger service that have come since it was started."""
        return reading(self.server, "grpc_server_call_started_total", grpc_method=f"{SERVICE}/{method}")

    def log_lines(self, *words: str) -> list[str]:
        """Lines of its log with all these words."""
        lines = self.server.log.read_text().splitlines()
        return [line for line in lines if all(word in line for word in words)]


@contextmanager
def running_fronts(
    folder: Path, flags: Sequence[Sequence[str]], model: Path = TINY_MODEL
) -> Iterator[list[Front]]:
    """As many fronts as there are tuples of flags, started together.

    Args:
        folder: for their files.
        flags: of each.
        model: a folder.
    """
    fronts = [Front(folder / f"front-{index}", one, model) for index, one in enumerate(flags)]
    try:
        with ThreadPoolExecutor(len(fronts)) as starting:
            list(starting.map(Front.start, fronts))
        yield fronts
    finally:
        for front in fronts:
            if hasattr(front, "server"):
                stop(front.server)

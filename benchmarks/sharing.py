"""Whether two workers of one device hold the weights once or twice."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.memory import private_bytes
from benchmarks.models import BenchModel
from benchmarks.server import running_server


@dataclass(frozen=True)
class Sharing:
    """Memory of a worker that has a twin.

    Attributes:
        private_bytes: of the worker with more of it: shared with no other process, libraries left out.
        weight_bytes: of the weights alone. Not shared, they would be part of the private memory.
    """

    model: str
    private_bytes: int
    weight_bytes: int


def measure_sharing(model: BenchModel, n_threads: int) -> Sharing | None:
    """Starts a server with two workers on the CPU; None where memory cannot be read."""
    with running_server(model.folder, "--workers", "2", device="cpu", n_threads=n_threads) as server:
        found = [private_bytes(pid) for pid in server.worker_pids]
    known = [one for one in found if one is not None]
    if len(known) < 2:
        return None
    return Sharing(model.name, max(known), 4 * model.n_parameters)

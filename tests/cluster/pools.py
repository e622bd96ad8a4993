"""What the fronts compute with: workers of their own, or two replicas of Ray Serve that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.fronts import Front
from tests.ray.processes import replica_pids
from tests.ray.shared_ray import SharedRay, running_ray

KINDS = ("local", "ray")
N_REPLICAS = 2
MOST_REPLICAS = 32
"""On one Ray; those of an application stay when its fronts are gone."""


@dataclass(frozen=True)
class Pool:
    """Workers of each front's own, or replicas of one Ray."""

    ray: SharedRay | None = None

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "local" if self.ray is None else "ray"

    def flags(self, n_workers: int = 2, application: str = "shared") -> tuple[str, ...]:
        """Flags of a front.

        Args:
            n_workers: local ones behind each front; of Ray's replicas there are always two.
            application: fronts that name the same one on Ray share its replicas, and so one model.
        """
        if self.ray is None:
            return ("--workers", str(n_workers), "--threads", "1")
        flags = ("--pool", "ray", "--ray-address", self.ray.address, "--ray-application", application)
        return (*flags, "--workers", str(N_REPLICAS), "--threads", "1")

    def worker_pids(self, front: Front) -> list[int]:
        """Processes that compute for this front; on Ray, for any."""
        return front.server.worker_pids() if self.ray is None else replica_pids(self.ray.pid)


@contextmanager
def running_pool(kind: str, folder: Path) -> Iterator[Pool]:
    """Starts what the fronts do not start themselves."""
    if kind == "local":
        yield Pool()
    else:
        with running_ray(folder, MOST_REPLICAS) as ray:
            yield Pool(ray)

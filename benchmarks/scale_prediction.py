"""What the scale model knows and what it makes of that: latency of a cluster under a load."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from benchmarks.scale_cluster import Cluster, Figures, Outcome, moments
from benchmarks.scale_process import Slowness
from benchmarks.scale_simulation import Simulation

MAX_BATCH_TOKENS = 1024
WORKERS_PER_FRONT = 8
RESTART = 60.0
MOMENTS_SEED = 7
N_CALLS, N_CALLS_PER_WORKER = 20_000, 100
"""At least so many calls are simulated, and more for many workers, or queues would not have time to grow."""


@dataclass(frozen=True)
class Model:
    """The figures of one kind of call, and the clusters that can be made of them.

    Attributes:
        n_tokens: of each call's prompt.
        slowness: of the cores while the figures were measured.
    """

    figures: Figures
    n_tokens: int
    slowness: Slowness

    def cluster(self, n_workers: int, worker_life: float = math.inf, front_life: float = math.inf) -> Cluster:
        """So many workers, eight to a front."""
        n_fronts = max(1, n_workers // WORKERS_PER_FRONT)
        return Cluster(
            n_fronts, n_workers // n_fronts, MAX_BATCH_TOKENS // self.n_tokens,
            worker_life=worker_life, front_life=front_life, restart=RESTART, slowness=self.slowness,
        )  # fmt: skip

    def capacity(self, there: Cluster) -> float:
        """Calls per second at most: of the workers, or of the fronts or the cores where those are fewer."""
        figures = self.figures
        of_workers = there.n_fronts * there.n_workers * figures.capacity(there.max_batch_calls)
        of_cores = there.n_cores / figures.all_seconds(there.max_batch_calls)
        return min(of_workers, there.n_fronts / figures.front, of_cores)

    def outcome(self, there: Cluster, load: float) -> Outcome:
        """What is predicted under a share of the capacity."""
        n_calls = max(N_CALLS, N_CALLS_PER_WORKER * there.n_fronts * there.n_workers)
        coming = tuple(itertools.islice(moments(load * self.capacity(there), MOMENTS_SEED), n_calls))
        return Simulation(self.figures, there, coming).run()

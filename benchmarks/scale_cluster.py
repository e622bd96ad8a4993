"""What the scale model is told, and what it answers: figures, a cluster, and what came of the calls."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


def moments(calls_per_second: float, seed: int) -> Iterator[float]:
    """When calls come, in seconds: at random, no end of them."""
    chance, moment = random.Random(seed), 0.0
    while True:
        moment += chance.expovariate(calls_per_second)
        yield moment


@dataclass(frozen=True)
class Figures:
    """What was measured of one worker and one front, in seconds.

    Attributes:
        batch_fixed: of a batch, however small.
        batch_per_call: of each call in it, on top.
        spread: standard deviation of a batch's time, as a share of it.
        front: of the front's one thread, per call.
        around: of a call outside of queue and worker, the front's share not included.
    """

    batch_fixed: float
    batch_per_call: float
    spread: float
    front: float
    around: float

    def batch_seconds(self, n_calls: int) -> float:
        """Mean time of a batch."""
        return self.batch_fixed + self.batch_per_call * n_calls

    def slower(self, factor: float) -> Figures:
        """The same where everything takes so many times as long."""
        return replace(
            self,
            batch_fixed=factor * self.batch_fixed,
            batch_per_call=factor * self.batch_per_call,
            front=factor * self.front,
            around=factor * self.around,
        )

    def capacity(self, max_batch_calls: int) -> float:
        """The most calls per second of one worker."""
        return max_batch_calls / self.batch_seconds(max_batch_calls)


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        n_fronts: behind the balancer.
        n_workers: of each front.
        max_batch_calls: calls that fit into a batch.
        max_wait: seconds that a busy worker waits for company.
        max_queue: calls that may wait for a worker of one front; further ones are refused.
        worker_life: mean seconds until a worker dies; infinite for workers that do not.
        front_life: the same of fronts.
        restart: seconds until a dead one is ready again.
        repeat: seconds after which a caller repeats a call whose front has died.
    """

    n_fronts: int
    n_workers: int
    max_batch_calls: int
    max_wait: float = 0.005
    max_queue: int = 128
    worker_life: float = math.inf
    front_life: float = math.inf
    restart: float = 30.0
    repeat: float = 0.2


@dataclass(frozen=True)
class Outcome:
    """What came of the calls.

    Attributes:
        latencies: seconds of the answered ones, [n].
        n_refused: because the queue was full, or no front was there.
        utilization: share of the workers' time spent on batches.
        mean_batch: calls in a batch.
    """

    latencies: np.ndarray
    n_refused: int
    utilization: float
    mean_batch: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many of 100 calls took at most; NaN where none was answered."""
        return float(np.percentile(self.latencies, percent)) if len(self.latencies) else math.nan

"""What the scale model is told, and what it answers: figures, a cluster, and what came of the calls."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.scale_process import EVER_THE_SAME, Slowness


def moments(calls_per_second: float, seed: int) -> Iterator[float]:
    """When calls come, in seconds: at random, no end of them."""
    chance, moment = random.Random(seed), 0.0
    while True:
        moment += chance.expovariate(calls_per_second)
        yield moment


@dataclass(frozen=True)
class Figures:
    """What was measured of one worker, one front and one caller: seconds, of a processor and on a mean core.

    Attributes:
        shared_fixed: of a batch until its first answer can be made, however small it is.
        shared_per_call: the same, of each call in it, on top.
        own: of a call's own answer, made when the batch has gone through the model.
        front_before: of the front, per call, until it waits for a worker.
        front_reading: of the front, for what the worker sends while it makes an answer.
        front_after: of the front, per call, when the worker has made its answer.
        caller: of a caller's side, per call.
        elsewhere: of a batch on its way to the worker, while nobody computes: threads and processes that
            wake each other; all that a lone call takes beside the rest.
    """

    shared_fixed: float
    shared_per_call: float
    own: float
    front_before: float
    front_reading: float
    front_after: float
    caller: float
    elsewhere: float

    @property
    def front(self) -> float:
        """Of the front, per call."""
        return self.front_before + self.front_reading + self.front_after

    def all_seconds(self, n_calls: int) -> float:
        """Of everybody, per call in such a batch."""
        return self.front + self.batch_seconds(n_calls) / n_calls + self.caller

    @property
    def lone_call(self) -> float:
        """Mean latency of a call that never waits: the front reads while the worker goes on."""
        return self.front_before + self.batch_seconds(1) + self.front_after + self.caller + self.elsewhere

    def shared_seconds(self, n_calls: int) -> float:
        """Mean time of a batch until the first answer can be made."""
        return self.shared_fixed + self.shared_per_call * n_calls

    def batch_seconds(self, n_calls: float) -> float:
        """Mean time of a batch."""
        return self.shared_fixed + (self.shared_per_call + self.own) * n_calls

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
        n_cores: that fronts, workers and callers share; infinite where each has its own.
        slowness: of the cores.
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
    n_cores: float = math.inf
    slowness: Slowness = EVER_THE_SAME
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

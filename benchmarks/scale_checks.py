"""The check of the scale model: real servers with one and with two workers, beside what it says about them.

Figures and real runs take turns, for the machine is another one some minutes later. Of a real run the
simulation is told the moments at which calls came, and how fast the cores were meanwhile, from samples that
have nothing to do with the service; nothing of what the service did.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from benchmarks.scale_cluster import Cluster, moments
from benchmarks.scale_cores import PAUSE, Watch, slowness, watched_cores
from benchmarks.scale_figures import Loop, closed_loops, figures
from benchmarks.scale_prediction import Model
from benchmarks.scale_process import Slowness
from benchmarks.scale_runs import MAX_QUEUE_LENGTH, Kind, Spent, closed_loop, open_loop, server
from benchmarks.scale_simulation import Simulation
from benchmarks.server import BenchServer

N_WORKERS = (1, 2)
N_PLAYED = 20
LOOP_SHARE = 1 / 3
"""Of the seconds of a real run that a closed loop takes."""

WARM_UP_CALLERS, WARM_UP_SECONDS = 8, 2.0
STRETCH = 3.0
N_RESAMPLED = 1000
RANGE = (5, 95)


@dataclass(frozen=True)
class Prediction:
    """Seconds, and calls in a batch."""

    p50: float
    p95: float
    mean_batch: float


@dataclass(frozen=True)
class Check:
    """Real runs of one kind beside what was predicted for them, in seconds.

    Attributes:
        load: share of the most calls per second that these workers can answer on this machine.
        p50_range: in which the median would probably lie if the runs were made again: nine times of ten.
        p95_range: the same.
        mean_batch: calls in a batch.
        predicted: for the moments at which calls came, and for the cores as fast as they were then.
        predicted_before: for cores that were as fast as they were while the figures were measured.
    """

    n_workers: int
    load: float
    calls_per_second: float
    n_calls: int
    p50: float
    p50_range: tuple[float, float]
    p95: float
    p95_range: tuple[float, float]
    mean_batch: float
    predicted: Prediction
    predicted_before: Prediction


@dataclass(frozen=True)
class _Run:
    """A real run: when calls were sent, how long each took, what was spent, and samples of the cores."""

    coming: np.ndarray
    latencies: np.ndarray
    spent: Spent
    samples: np.ndarray


Key = tuple[int, float]
"""Workers, and the load that they shall have as far as figures are known by then."""


@dataclass(frozen=True)
class Measured:
    """All that was measured."""

    loops: list[Loop]
    runs: dict[Key, list[_Run]]


def checked_model(kind: Kind, measured: Measured) -> tuple[Model, list[Check]]:
    """Lets the simulation play what was real."""
    model, reference = _model(kind, measured.loops)
    say("playing")
    checks = [_check(model, reference, n_workers, runs) for (n_workers, _), runs in measured.runs.items()]
    return model, checks


def measure(kind: Kind, device: str, seconds: float, n_rounds: int, loads: Sequence[float]) -> Measured:
    """Closed loops and real runs in turns.

    Args:
        seconds: of each real run.
    """
    loops: list[Loop] = []
    runs: dict[Key, list[_Run]] = {key: [] for key in itertools.product(N_WORKERS, loads)}
    with watched_cores() as watch, server(kind, device, 1) as one, server(kind, device, 2) as two:
        servers = dict(zip(N_WORKERS, (one, two), strict=True))
        for running in servers.values():
            closed_loop(kind, running, WARM_UP_CALLERS, WARM_UP_SECONDS)
        for n_round in range(n_rounds):
            say(f"round {n_round + 1} of {n_rounds}: figures")
            loops += closed_loops(kind, one, watch, LOOP_SHARE * seconds)
            so_far, _ = _model(kind, loops)
            for n_workers, load in runs:
                say(f"round {n_round + 1} of {n_rounds}: {n_workers} workers at {load:.0%}")
                rate = load * so_far.capacity(_here(so_far, n_workers))
                run = _real_run(kind, servers[n_workers], watch, rate, seconds, seed=n_round)
                runs[n_workers, load].append(run)
    return Measured(loops, runs)


def _model(kind: Kind, loops: Sequence[Loop]) -> tuple[Model, float]:
    """And the seconds of a sample on the mean core."""
    samples = np.concatenate([loop.samples for loop in loops])
    reference = float(samples.mean())
    seconds = PAUSE * len(samples)
    cores = dataclasses.replace(slowness(samples, seconds, reference), spread=seconds)
    return Model(figures(loops, reference), kind.n_tokens, cores), reference


def _here(model: Model, n_workers: int) -> Cluster:
    """One server on this machine."""
    n_cores = os.cpu_count() or 1
    return dataclasses.replace(model.cluster(n_workers), max_queue=MAX_QUEUE_LENGTH, n_cores=n_cores)


def _real_run(kind: Kind, running: BenchServer, watch: Watch, rate: float, seconds: float, seed: int) -> _Run:
    coming = tuple(itertools.takewhile(lambda moment: moment < seconds, moments(rate, seed)))
    *sent_and_latencies, spent = open_loop(kind, running, coming)
    return _Run(*sent_and_latencies, spent, watch.last(spent.seconds))


def _check(model: Model, reference: float, n_workers: int, runs: Sequence[_Run]) -> Check:
    there = _here(model, n_workers)
    latencies = np.concatenate([run.latencies for run in runs])
    p50_range, p95_range = _ranges(runs)
    p50, p95 = map(float, np.percentile(latencies, (50, 95)))
    rate = len(latencies) / sum(run.coming[-1] for run in runs)
    met = [slowness(run.samples, run.spent.seconds, reference) for run in runs]
    return Check(
        n_workers, rate / model.capacity(there), rate, len(latencies), p50, p50_range, p95, p95_range,
        reduce(add, [run.spent for run in runs]).mean_batch,
        _predicted(model, there, runs, met),
        _predicted(model, there, runs, [model.slowness] * len(runs)),
    )  # fmt: skip


def _predicted(model: Model, there: Cluster, runs: Sequence[_Run], met: Sequence[Slowness]) -> Prediction:
    """Of the same calls, played again and again on cores that were so slow in each run."""
    played = [
        Simulation(model.figures, dataclasses.replace(there, slowness=cores), run.coming.tolist(), seed).run(
            warm_up=0.0
        )
        for seed in range(N_PLAYED)
        for run, cores in zip(runs, met, strict=True)
    ]
    p50, p95 = map(float, np.percentile(np.concatenate([one.latencies for one in played]), (50, 95)))
    n_batches = sum(len(one.latencies) / one.mean_batch for one in played)
    return Prediction(p50, p95, sum(len(one.latencies) for one in played) / n_batches)


def _ranges(runs: Sequence[_Run]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Of the median and the 95th percentile, had other stretches of some seconds made up the runs."""
    stretches = [
        run.latencies[(begin <= run.coming) & (run.coming < begin + STRETCH)]
        for run in runs
        for begin in np.arange(0.0, run.coming[-1], STRETCH)
    ]
    chance = np.random.default_rng(0)
    resampled = [
        np.percentile(np.concatenate([stretches[index] for index in chosen]), (50, 95))
        for chosen in chance.integers(len(stretches), size=(N_RESAMPLED, len(stretches)))
    ]
    (low50, low95), (high50, high95) = np.percentile(resampled, RANGE, axis=0).tolist()
    return (low50, high50), (low95, high95)


def say(what: str) -> None:
    """Progress, beside the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)

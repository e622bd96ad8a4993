"""Predicts latency under load for 1 to 1,000 workers: `python -m benchmarks.scale_model --help`.

First one worker and its front are measured, then real servers with one and with two workers are given calls
at random moments, and the simulation is asked for the same: that is the check. Then come the clusters that
are not here. With --figures a file of figures takes the place of measuring.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import OthersLoad, machine_facts
from benchmarks.models import BenchModel, random_gpt2
from benchmarks.scale_cluster import Cluster, Figures, Outcome
from benchmarks.scale_figures import MAX_QUEUE_LENGTH, MOMENTS_SEED, Kind, measured_figures, open_loop, server
from benchmarks.scale_simulation import Simulation
from benchmarks.server import BenchServer
from benchmarks.table import table

TINY = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-a"
MODELS = ("tiny", "gpt2")
MAX_BATCH_TOKENS = 1024
WORKERS_PER_FRONT = 8
WORKERS = (1, 2, 8, 64, 1000)
LOADS = (0.3, 0.5, 0.7, 0.9)
CHECKED_LOADS = (0.2, 0.4, 0.6)
"""Shares of the capacity: near 1, chance makes more of a difference in a minute than anything else."""

DAY = 24 * 3600.0
DEATHS = (
    ("nobody dies", math.inf, math.inf),
    ("a worker once a day, a front once a week", DAY, 7 * DAY),
    ("a worker every half hour, a front once a day", 1800.0, DAY),
)
"""Mean seconds that a worker lives, and a front."""

RESTART = 60.0
N_PLAYED = 30
N_CALLS, N_CALLS_PER_WORKER = 20_000, 100
"""At least so many calls are simulated, and more for many workers, or queues would not have time to grow."""

MS = 1e3


@dataclass(frozen=True)
class Check:
    """One real run beside what was predicted for the same calls, in seconds.

    Attributes:
        load: share of the capacity.
        mean_batch: calls in a batch.
    """

    n_workers: int
    load: float
    calls_per_second: float
    n_calls: int
    p50: float
    p95: float
    predicted_p50: float
    predicted_p95: float
    mean_batch: float
    predicted_mean_batch: float


@dataclass(frozen=True)
class Model:
    """The figures of one kind of call, and the clusters that can be made of them.

    Attributes:
        n_tokens: of each call's prompt.
    """

    figures: Figures
    n_tokens: int

    def cluster(self, n_workers: int, worker_life: float = math.inf, front_life: float = math.inf) -> Cluster:
        """So many workers, eight to a front."""
        n_fronts = max(1, n_workers // WORKERS_PER_FRONT)
        return Cluster(
            n_fronts, n_workers // n_fronts, MAX_BATCH_TOKENS // self.n_tokens,
            worker_life=worker_life, front_life=front_life, restart=RESTART,
        )  # fmt: skip

    def capacity(self, n_workers: int) -> float:
        """Calls per second at most: of the workers, or of their fronts' threads where those are slower."""
        there = self.cluster(n_workers)
        of_workers = there.n_fronts * there.n_workers * self.figures.capacity(there.max_batch_calls)
        return min(of_workers, there.n_fronts / self.figures.front)

    def outcome(self, there: Cluster, load: float) -> Outcome:
        """What is predicted under a share of the capacity."""
        n_workers = there.n_fronts * there.n_workers
        simulation = Simulation(self.figures, there, load * self.capacity(n_workers))
        return simulation.run(max(N_CALLS, N_CALLS_PER_WORKER * n_workers))


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale_model", description=__doc__)
    add = parser.add_argument
    add("--model", choices=MODELS, default="gpt2", help="what to measure (default: %(default)s)")
    add("--device", default="cpu", help="where to measure (default: %(default)s)")
    add("--seconds", type=float, default=30.0, help="of each real run (default: %(default)s)")
    add("--figures", type=Path, metavar="PATH", help="a file that --json wrote, in place of measuring")
    add("--json", type=Path, metavar="PATH", help="file for figures and checks")
    options = parser.parse_args()
    if options.figures:
        found = json.loads(options.figures.read_text())
        model = Model(Figures(**found["figures"]), found["n_tokens"])
        checks = [Check(**one) for one in found["checks"]]
    else:
        others = OthersLoad()
        model, checks = measure(_kind(options.model), options.device, options.seconds)
        found = {
            "machine": {**machine_facts(options.device, 1), "share_of_cores_used_by_others": others.share()},
            "n_tokens": model.n_tokens,
            "figures": dataclasses.asdict(model.figures),
            "checks": [dataclasses.asdict(one) for one in checks],
        }
        print(f"others used a share of {found['machine']['share_of_cores_used_by_others']} of the cores")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(in_words(model))
    for text in (lambda: checks_table(checks), lambda: clusters_table(model), lambda: failures_table(model)):
        print(f"\n{text()}", flush=True)


def _kind(name: str) -> Kind:
    return Kind(BenchModel("tiny", TINY, TINY), 8) if name == "tiny" else Kind(random_gpt2(), 64)


def measure(kind: Kind, device: str, seconds: float) -> tuple[Model, list[Check]]:
    """Figures of one worker; then real runs, of which the simulation knows nothing but the rate."""
    with server(kind, device, 1) as running:
        say("measuring one worker")
        model = Model(measured_figures(kind, running, seconds / 2), kind.n_tokens)
        checks = [check(model, kind, running, 1, load, seconds) for load in CHECKED_LOADS]
    with server(kind, device, 2) as running:
        open_loop(kind, running, model.capacity(1), 3.0)  # warm-up
        checks += [check(model, kind, running, 2, load, seconds) for load in CHECKED_LOADS]
    return model, checks


def check(
    model: Model, kind: Kind, running: BenchServer, n_workers: int, load: float, seconds: float
) -> Check:
    """A real run, and the prediction for it."""
    say(f"{n_workers} workers at {load:.0%}")
    rate = load * model.capacity(n_workers)
    latencies, counted = open_loop(kind, running, rate, seconds)
    there = dataclasses.replace(
        model.cluster(n_workers), max_queue=MAX_QUEUE_LENGTH, n_cores=os.cpu_count() or 1
    )
    n_calls = len(latencies)
    *predicted, mean_batch = _predicted(model.figures, there, rate, n_calls)
    p50, p95 = map(float, np.percentile(latencies, (50, 95)))
    return Check(n_workers, load, rate, n_calls, p50, p95, *predicted, counted.mean_batch, mean_batch)


def _predicted(figures: Figures, there: Cluster, rate: float, n_calls: int) -> tuple[float, float, float]:
    """p50 and p95 of the same calls, played again and again, and calls in a batch."""
    played = [
        Simulation(figures, there, rate, MOMENTS_SEED, spread_seed).run(n_calls, warm_up=0.0)
        for spread_seed in range(N_PLAYED)
    ]
    p50, p95 = np.percentile(np.concatenate([one.latencies for one in played]), (50, 95))
    return float(p50), float(p95), float(np.mean([one.mean_batch for one in played]))


def in_words(model: Model) -> str:
    """The figures, and what follows from them at once."""
    figures = model.figures
    of_worker, of_front = figures.capacity(MAX_BATCH_TOKENS // model.n_tokens), 1 / figures.front
    before, after = figures.front_before * MS, figures.front_after * MS
    return (
        f"a batch of n calls of {model.n_tokens} tokens: {figures.shared_fixed * MS:.1f} ms + "
        f"n × {figures.shared_per_call * MS:.1f} ms through the model, then {figures.own * MS:.1f} ms each\n"
        f"a front's thread: {before:.2f} ms before the worker and {after:.2f} ms after it; "
        f"elsewhere: {figures.around * MS:.2f} ms; the caller: {figures.caller * MS:.2f} ms\n"
        f"so a worker answers {of_worker:.1f} calls/s at most and a front {of_front:.0f}: "
        f"one front is enough for {of_front / of_worker:.0f} such workers"
    )


def checks_table(checks: list[Check]) -> str:
    """Real runs beside predictions."""
    header = ["workers", "load", "calls/s", "calls", "p50, ms", "predicted", "p95, ms", "predicted"]
    header += ["in a batch", "predicted"]
    rows = [
        [
            str(one.n_workers), f"{one.load:.0%}", f"{one.calls_per_second:.1f}", str(one.n_calls),
            *(f"{MS * seconds:.0f}" for seconds in (one.p50, one.predicted_p50, one.p95, one.predicted_p95)),
            *(f"{n_calls:.2f}" for n_calls in (one.mean_batch, one.predicted_mean_batch)),
        ]
        for one in checks
    ]  # fmt: skip
    return table(header, rows)


def clusters_table(model: Model) -> str:
    """Latency against load."""
    rows = []
    for n_workers in WORKERS:
        say(f"{n_workers} workers")
        outcomes = [model.outcome(model.cluster(n_workers), load) for load in LOADS]
        rows.append([str(n_workers), f"{model.capacity(n_workers):.0f}", *map(_cell, outcomes)])
    return table(["workers", "calls/s at most", *(f"{load:.0%}" for load in LOADS)], rows)


def failures_table(model: Model) -> str:
    """What deaths do to a cluster that is loaded to 70 %."""
    rows = []
    for name, worker_life, front_life in DEATHS:
        for n_workers in (8, 1000):
            say(f"{n_workers} workers, {name}")
            outcome = model.outcome(model.cluster(n_workers, worker_life, front_life), 0.7)
            longest = f"{outcome.percentile(99.9) * MS:.0f}"
            rows.append([name, str(n_workers), _cell(outcome), longest, str(outcome.n_refused)])
    return table(["what dies", "workers", "p50 / p95, ms", "p99.9, ms", "refused"], rows)


def _cell(outcome: Outcome) -> str:
    refused = f", {outcome.n_refused} refused" if outcome.n_refused else ""
    return f"{outcome.percentile(50) * MS:.0f} / {outcome.percentile(95) * MS:.0f}{refused}"


def say(what: str) -> None:
    """Progress, beside the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

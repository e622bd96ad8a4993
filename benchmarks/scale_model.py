"""Predicts latency under load for 1 to 1,000 workers: `python -m benchmarks.scale_model --help`.

First, in turns, one worker and its front are measured, and real servers with one and with two workers are
given calls at random moments; then the simulation is asked for the same: that is the check. Then come the
clusters that are not here. With --figures a file of figures takes the place of measuring.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.machine import OthersLoad, machine_facts
from benchmarks.models import BenchModel, random_gpt2
from benchmarks.scale_checks import Check, Prediction, checked_model, measure, say
from benchmarks.scale_cluster import Figures, Outcome
from benchmarks.scale_prediction import MAX_BATCH_TOKENS, Model
from benchmarks.scale_process import Slowness
from benchmarks.scale_runs import Kind
from benchmarks.table import table

TINY = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-a"
MODELS = ("tiny", "gpt2")
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

MS = 1e3


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale_model", description=__doc__)
    add = parser.add_argument
    add("--model", choices=MODELS, default="gpt2", help="what to measure (default: %(default)s)")
    add("--device", default="cpu", help="where to measure (default: %(default)s)")
    add("--seconds", type=float, default=30.0, help="of each real run (default: %(default)s)")
    add("--rounds", type=int, default=4, help="of figures and real runs in turn (default: %(default)s)")
    add(
        "--loads",
        type=float,
        nargs="+",
        default=CHECKED_LOADS,
        help="of the real runs (default: %(default)s)",
    )
    add("--figures", type=Path, metavar="PATH", help="a file that --json wrote, in place of measuring")
    add("--json", type=Path, metavar="PATH", help="file for figures and checks")
    options = parser.parse_args()
    if options.figures:
        model, checks = read(options.figures)
    else:
        others = OthersLoad()
        kind = _kind(options.model)
        measured = measure(kind, options.device, options.seconds, options.rounds, options.loads)
        model, checks = checked_model(kind, measured)
        facts = {**machine_facts(options.device, 1), "share_of_cores_used_by_others": others.share()}
        print(f"others used a share of {facts['share_of_cores_used_by_others']} of the cores")
        if options.json:
            write(options.json, facts, model, checks)
    print(in_words(model))
    print(f"\n{checks_table(checks)}", flush=True)
    print(f"\n{clusters_table(model)}", flush=True)
    print(f"\n{failures_table(model)}")


def _kind(name: str) -> Kind:
    return Kind(BenchModel("tiny", TINY, TINY), 8) if name == "tiny" else Kind(random_gpt2(), 16)


def write(path: Path, machine: dict[str, Any], model: Model, checks: list[Check]) -> None:
    """One line for each part: there are thousands of samples."""
    slowness = {
        **dataclasses.asdict(model.slowness),
        "ratios": [round(one, 3) for one in model.slowness.ratios],
    }
    parts = {
        "machine": machine,
        "n_tokens": model.n_tokens,
        "figures": dataclasses.asdict(model.figures),
        "slowness": slowness,
        "checks": [dataclasses.asdict(one) for one in checks],
    }
    lines = (f"{json.dumps(name)}: {json.dumps(part)}" for name, part in parts.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: Path) -> tuple[Model, list[Check]]:
    found = json.loads(path.read_text())
    model = Model(Figures(**found["figures"]), found["n_tokens"], Slowness(**found["slowness"]))
    names = ("predicted", "predicted_before")
    return model, [
        Check(**{**one, **{name: Prediction(**one[name]) for name in names}}) for one in found["checks"]
    ]


def in_words(model: Model) -> str:
    """The figures, and what follows from them at once."""
    figures = model.figures
    of_worker, of_front = figures.capacity(MAX_BATCH_TOKENS // model.n_tokens), 1 / figures.front
    before, reading, after = (
        MS * seconds for seconds in (figures.front_before, figures.front_reading, figures.front_after)
    )
    return (
        f"a batch of n calls of {model.n_tokens} tokens: {figures.shared_fixed * MS:.1f} ms + "
        f"n × {figures.shared_per_call * MS:.1f} ms through the model, then {figures.own * MS:.1f} ms each\n"
        f"the front: {before:.2f} ms before the worker, {reading:.2f} ms to read what it sends and "
        f"{after:.2f} ms after it; the caller: {figures.caller * MS:.2f} ms; "
        f"elsewhere: {figures.elsewhere * MS:.2f} ms\n"
        f"so a call that never waits takes {figures.lone_call * MS:.1f} ms\n"
        f"so a worker answers {of_worker:.1f} calls/s at most and a front {of_front:.0f}: "
        f"one front is enough for {of_front / of_worker:.0f} such workers"
    )


def checks_table(checks: list[Check]) -> str:
    """Real runs beside predictions, for the cores as they were then and (before) for those of the figures."""
    header = ["workers", "load", "calls/s", "calls", "p50, ms", "range", "predicted", "before"]
    header += ["p95, ms", "range", "predicted", "before", "in a batch", "predicted", "before"]
    rows = [
        [
            str(one.n_workers), f"{one.load:.0%}", f"{one.calls_per_second:.1f}", str(one.n_calls),
            *_beside(one.p50, one.p50_range, one.predicted.p50, one.predicted_before.p50),
            *_beside(one.p95, one.p95_range, one.predicted.p95, one.predicted_before.p95),
            *(f"{batch.mean_batch:.2f}" for batch in (one, one.predicted, one.predicted_before)),
        ]
        for one in checks
    ]  # fmt: skip
    return table(header, rows)


def _beside(real: float, probable: tuple[float, float], predicted: float, before: float) -> list[str]:
    """In milliseconds; predictions with their ratio to what was real."""
    low, high = probable
    predictions = (f"{MS * one:.0f} ({one / real:.2f})" for one in (predicted, before))
    return [f"{MS * real:.0f}", f"{MS * low:.0f} to {MS * high:.0f}", *predictions]


def clusters_table(model: Model) -> str:
    """Latency against load."""
    rows = []
    for n_workers in WORKERS:
        say(f"{n_workers} workers")
        outcomes = [model.outcome(model.cluster(n_workers), load) for load in LOADS]
        rows.append(
            [str(n_workers), f"{model.capacity(model.cluster(n_workers)):.0f}", *map(_cell, outcomes)]
        )
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


if __name__ == "__main__":
    main()

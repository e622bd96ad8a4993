"""Measures everything, prints the tables and writes them as JSON: `python -m benchmarks.run --help`.

A run takes about twenty minutes on two quiet cores, `--quick` four minutes. Nothing is downloaded. The
first time, a random model and random autoencoders are made and kept in the user's cache, 1.8 GB.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tdb_client import Client

from benchmarks.caller import Caller
from benchmarks.cases import CASES, LONGEST, Case
from benchmarks.floor import Floor
from benchmarks.latency import Bench, Effort, Row, measure_row, ready_memory
from benchmarks.limits import limits
from benchmarks.machine import OthersLoad, machine_facts
from benchmarks.models import MODELS, BenchModel, random_gpt2
from benchmarks.precision import (
    FLOAT32,
    GPU_PRECISIONS,
    SEED,
    Answers,
    Precision,
    answers,
    precision_error,
)
from benchmarks.prompts import Words
from benchmarks.report import Report
from benchmarks.server import BenchServer, running_server
from benchmarks.sharing import measure_sharing
from benchmarks.throughput import measure_throughput
from benchmarks.transport import measure_transport

N_THREADS = 2
LATEST = Path(__file__).parent / "latest.json"
OTHERS = ("throughput", "transport", "sharing")
PLAIN = CASES[0]
QUICK_SECONDS, ROW_SECONDS = 3.0, 11.0


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how thoroughly."""

    device: str
    models: tuple[str, ...]
    only: frozenset[str]
    is_quick: bool

    def wants(self, name: str) -> bool:
        """Whether a case, or one of the other measurements, was asked for."""
        return not self.only or name in self.only

    def lengths(self, model: BenchModel, case: Case) -> tuple[int, ...]:
        """Tokens of the prompts; the quick run leaves out the long ones, and most of the second model."""
        if not self.is_quick:
            return case.lengths
        if model.autoencoder is None:
            return (64,) if case is PLAIN else ()
        return tuple(n for n in case.lengths if n < LONGEST and (case is PLAIN or n == 64))

    def effort(self, n_tokens: int) -> Effort:
        """Short prompts are repeated more often."""
        if self.is_quick:
            return Effort(max_turns=7, min_turns=3, max_seconds=QUICK_SECONDS, n_warm_ups=1)
        if n_tokens >= LONGEST:
            return Effort(max_turns=3, min_turns=3, max_seconds=ROW_SECONDS, n_warm_ups=1)
        return Effort(max_turns=25, min_turns=9, max_seconds=ROW_SECONDS, n_warm_ups=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    names = (*(case.name for case in CASES), *OTHERS)
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer lengths and repetitions")
    add("--only", metavar="CASE", action="append", choices=names, default=[],
        help=f"measure this alone, or several of these: {', '.join(names)}")  # fmt: skip
    add("--model", action="append", choices=sorted(MODELS), default=[], help="this model alone")
    add("--json", metavar="PATH", type=Path,
        help=f"where to write the figures (default: {LATEST.name} beside this file for whole runs, "
        "nowhere for others)")  # fmt: skip
    add("--device", default=device, help="cpu or cuda:N (default: %(default)s)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # servers are stopped on the way out
    models = tuple(options.model or MODELS)
    plan = Plan(options.device, models, frozenset(options.only), options.quick)
    report = Report(machine_facts(plan.device, N_THREADS))
    start, load = time.monotonic(), OthersLoad()
    path = options.json
    try:
        measure(plan, report)
        if path is None and not (plan.is_quick or plan.only or options.model):
            path = LATEST
    finally:  # a run that is told to stop shows what it has
        report.machine |= {
            "seconds": round(time.monotonic() - start),
            "load_average": os.getloadavg(),
            "share_of_cores_used_by_others": load.share(),
        }
        if plan.device == "cpu":
            report.limits = limits(report.rows, report.transports, report.sharings)
        print(report)
        if path is not None:
            report.write(path)
            print(f"\nwritten to {path}")


def measure(plan: Plan, report: Report) -> None:
    """Model by model, precision by precision; float32, to which the others are compared, is the first."""
    precisions = GPU_PRECISIONS if plan.device.startswith("cuda") else (FLOAT32,)
    for model in (MODELS[name]() for name in plan.models):
        exact: Answers | None = None
        for precision in precisions:
            found = measure_model(plan, report, model, precision)
            if exact is None:
                exact = found
            elif found is not None:
                report.precision_errors.append(precision_error(model.name, precision.name, found, exact))
    if plan.wants("sharing") and plan.device == "cpu" and not plan.is_quick:
        say("sharing of weights between two workers")
        sharing = measure_sharing(random_gpt2(), N_THREADS)
        report.sharings += [sharing] if sharing else []


def measure_model(plan: Plan, report: Report, model: BenchModel, precision: Precision) -> Answers | None:
    """One model in one precision: its rows, then the rest.

    Returns:
        Answers to be compared with other precisions; None where nothing was measured.
    """
    cases = [case for case in CASES if plan.wants(case.name) and plan.lengths(model, case)]
    plain_cases = [case for case in cases if not case.with_latents]
    rest = [
        name for name in OTHERS[:2] if plan.wants(name) and not (plan.is_quick and model.autoencoder is None)
    ]
    found: Answers | None = None
    floor = None
    if cases:
        floor = Floor(model.folder, plan.device, getattr(torch, precision.dtype), N_THREADS, precision.tf32)
    if plain_cases or rest:
        with serving(plan, model, precision) as server:
            if floor is not None and plain_cases:
                found = measure_rows(plan, report, model, precision, server, floor, plain_cases)
            if precision is FLOAT32 and rest:
                measure_rest(plan, report, model, server, rest)
    latent_cases = [case for case in cases if case.with_latents]
    if floor is not None and latent_cases and model.autoencoder is not None:
        with serving(plan, model, precision, [model.autoencoder()]) as server:
            measure_rows(plan, report, model, precision, server, floor, latent_cases)
    del floor
    gc.collect()
    return found


@contextmanager
def serving(
    plan: Plan, model: BenchModel, precision: Precision, autoencoders: Sequence[Path] = ()
) -> Iterator[BenchServer]:
    """A server for one model in one precision."""
    say(f"starting a server: {model.name}, {precision.name}{', with latents' if autoencoders else ''}")
    with running_server(
        model.folder,
        "--dtype",
        precision.dtype,
        device=plan.device,
        n_threads=N_THREADS,
        autoencoders=autoencoders,
        environment=precision.environment,
    ) as server:
        yield server


def measure_rows(
    plan: Plan, report: Report, model: BenchModel, precision: Precision, server: BenchServer, floor: Floor,
    cases: Sequence[Case],
) -> Answers | None:  # fmt: skip
    """Every case at every length.

    Returns:
        Answers to plain requests, on a GPU.
    """
    pid = server.worker_pids[0] if server.worker_pids and plan.device == "cpu" else None
    ready_bytes = ready_memory(pid)
    weight_bytes = model.n_parameters * getattr(torch, precision.dtype).itemsize
    with Caller(server.address) as caller, Client(server.address) as client:
        info, words = client.model_info(), Words(model.tokenizer_folder)
        bench = Bench(caller, floor, words, info, pid, ready_bytes, weight_bytes)
        for case in cases:
            for n_tokens in plan.lengths(model, case):
                say(f"{model.name}, {precision.name}: {case.title}, {n_tokens} tokens")
                row = Row(model.name, precision.name, case.name, case.title, n_tokens)
                report.rows.append(measure_row(bench, case, n_tokens, plan.effort(n_tokens), row))
        if plan.device == "cpu" or PLAIN not in cases:
            return None
        return answers(caller, PLAIN, info, Words(model.tokenizer_folder, SEED))


def measure_rest(
    plan: Plan, report: Report, model: BenchModel, server: BenchServer, names: Sequence[str]
) -> None:
    """Throughput, and the cost of the service itself."""
    with Client(server.address) as client:
        info = client.model_info()
    if "throughput" in names:
        say(f"{model.name}: throughput")
        seconds = QUICK_SECONDS if plan.is_quick else 8.0
        report.throughputs += measure_throughput(
            server.address, model.name, model.tokenizer_folder, info, PLAIN, seconds
        )
    if "transport" in names:
        say(f"{model.name}: transport")
        words = Words(model.tokenizer_folder, seed=3)
        n_round_trips, n_streams = (200, 5) if plan.is_quick else (500, 15)
        report.transports.append(
            measure_transport(server.address, model.name, words, info, n_round_trips, n_streams)
        )


def say(what: str) -> None:
    """Progress, beside the tables."""
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

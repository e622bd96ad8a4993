"""Latency under load: `python -m benchmarks.load --help`.

Real servers of a tiny model, so that the service is what is measured. Callers who never pause find the most
calls per second; then calls come at random moments, at shares of that, whether others are answered or not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tdb_client import DebugSubRequest
from tdb_client.connection import Connection
from tdb_client.encoding import debug_request
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from benchmarks.caller import MAX_RECEIVE_BYTES, SERVICE
from benchmarks.machine import OthersLoad
from benchmarks.prompts import Words
from benchmarks.server import BenchServer, processor_seconds, running_server
from benchmarks.table import table

MODEL = Path(__file__).parent.parent / "tests" / "fixtures" / "tiny-a"
N_TOKENS, K = 8, 10
N_CALLERS = 16
CALL_SECONDS = 120.0
ROOM = ("queue-length", "concurrent-calls", "calls-per-caller", "concurrent-streams")
HEADER = ("workers", "load", "calls/s", "p50, ms", "p95, ms", "calls in a batch", "front, ms/call")

TimedCall = Callable[[], Awaitable[float]]
"""Makes a call; gives the seconds that it took."""

Load = Callable[[TimedCall], Awaitable[list[float]]]
"""Makes many of them; gives the seconds of each."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.load", description=__doc__)
    add = parser.add_argument
    add("--workers", type=int, nargs="+", default=[1, 2], help="of each server (default: %(default)s)")
    add("--loads", type=float, nargs="+", default=[0.2, 0.4, 0.6],
        help="shares of the most calls per second (default: %(default)s)")  # fmt: skip
    add("--seconds", type=float, default=30.0, help="of each run (default: %(default)s)")
    options = parser.parse_args()
    others, rows = OthersLoad(), []
    for n_workers in options.workers:
        flags = ("--workers", str(n_workers), "--metrics-port", "0")
        flags += tuple(f"--max-{what}=2000" for what in ROOM)
        with running_server(MODEL, *flags, device="cpu", n_threads=1) as server:
            measure(server, never_pausing(N_CALLERS, 2.0))  # warm-up
            most, cells = measure(server, never_pausing(N_CALLERS, options.seconds))
            rows.append([str(n_workers), f"{N_CALLERS} callers", *cells])
            for load in options.loads:
                _, cells = measure(server, at_random(load * most, options.seconds))
                rows.append([str(n_workers), f"{load:.0%}", *cells])
    print(table(HEADER, rows, n_left=2))
    print(f"\nothers used a share of {others.share()} of the cores")


def measure(server: BenchServer, load: Load) -> tuple[float, list[str]]:
    """One run.

    Returns:
        Calls per second, and the cells of the table.
    """
    before, begun_at = _batches_calls_and_front_seconds(server), time.monotonic()
    latencies = asyncio.run(_run(server.address, load))
    seconds = time.monotonic() - begun_at
    n_batches, n_batched, front = _batches_calls_and_front_seconds(server) - before
    p50, p95 = np.percentile(latencies, (50, 95)) * 1e3
    rate, batch, per_call = len(latencies) / seconds, n_batched / n_batches, front / len(latencies) * 1e3
    return rate, [f"{rate:.1f}", f"{p50:.0f}", f"{p95:.0f}", f"{batch:.2f}", f"{per_call:.1f}"]


def never_pausing(n_callers: int, seconds: float) -> Load:
    """So many callers who call again as soon as they have their answer."""

    async def load(call: TimedCall) -> list[float]:
        ends_at = time.monotonic() + seconds

        async def keep_calling() -> list[float]:
            latencies = []
            while time.monotonic() < ends_at:
                latencies.append(await call())
            return latencies

        of_each = await asyncio.gather(*(keep_calling() for _ in range(n_callers)))
        return list(itertools.chain.from_iterable(of_each))

    return load


def at_random(calls_per_second: float, seconds: float) -> Load:
    """Calls that come at random moments."""
    chance = Random(0)
    pauses = iter(lambda: chance.expovariate(calls_per_second), None)
    moments = list(itertools.takewhile(lambda moment: moment < seconds, itertools.accumulate(pauses)))

    async def load(call: TimedCall) -> list[float]:
        begun_at = time.monotonic()

        async def call_at(moment: float) -> float:
            await asyncio.sleep(begun_at + moment - time.monotonic())
            return await call()

        return await asyncio.gather(*map(call_at, moments))

    return load


async def _run(address: str, load: Load) -> list[float]:
    """Answers are not looked at: this process shall take little time from the server."""
    requests = _requests()
    async with Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open_async() as channel:
        debug = channel.unary_unary(f"{SERVICE}/Debug", DebugRequest.SerializeToString)

        async def call() -> float:
            request, begun_at = next(requests), time.monotonic()
            await debug(request, timeout=CALL_SECONDS)
            return time.monotonic() - begun_at

        return await load(call)


def _requests() -> Iterator[DebugRequest]:
    words = Words(MODEL)
    while True:
        prompt = words.prompt(N_TOKENS)
        yield debug_request([DebugSubRequest(prompt.text, (prompt.target,), (prompt.distractor,), k=K)])


def _batches_calls_and_front_seconds(server: BenchServer) -> np.ndarray:
    """Since the server started: batches, calls in them, processor seconds of the front."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    sums = {"tdb_batch_calls_count": 0.0, "tdb_batch_calls_sum": 0.0}
    for sample in (sample for family in families for sample in family.samples if sample.name in sums):
        sums[sample.name] += sample.value
    return np.array([*sums.values(), processor_seconds(server.front_pid)])


if __name__ == "__main__":
    main()

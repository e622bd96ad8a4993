"""What the scale model is fed with, and what it is checked against: real servers under a known load."""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tdb_client import DebugSubRequest
from tdb_client.connection import Connection
from tdb_client.decoding import timings
from tdb_client.encoding import debug_request
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, DebugResponse
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from benchmarks.caller import MAX_RECEIVE_BYTES, SERVICE
from benchmarks.models import BenchModel
from benchmarks.prompts import Words
from benchmarks.scale_cluster import Figures, moments
from benchmarks.server import BenchServer, running_server

N_CALLERS = (1, 2, 4, 8)
K = 10
CALL_SECONDS = 120.0
MOMENTS_SEED = 7
N_RATIOS = 100
N_VALIDATED = 500
N_PROMPTS = 200
CALLER_CALLS_PER_SECOND, CALLER_SECONDS = 5.0, 10.0
MAX_QUEUE_LENGTH = 1000


@dataclass(frozen=True)
class Kind:
    """The calls that are made: one plain sub-request of a random prompt."""

    model: BenchModel
    n_tokens: int

    def sub_requests(self, seed: int) -> Iterator[DebugSubRequest]:
        """No end of them."""
        words = Words(self.model.tokenizer_folder, seed)
        while True:
            prompt = words.prompt(self.n_tokens)
            yield DebugSubRequest(prompt.text, (prompt.target,), (prompt.distractor,), k=K)


@dataclass(frozen=True)
class Counters:
    """What a server has counted since it started."""

    busy_seconds: float
    n_batches: float
    n_batched: float
    front_seconds: float

    def __sub__(self, other: Counters) -> Counters:
        return Counters(
            self.busy_seconds - other.busy_seconds,
            self.n_batches - other.n_batches,
            self.n_batched - other.n_batched,
            self.front_seconds - other.front_seconds,
        )

    @property
    def mean_batch(self) -> float:
        """Calls in a batch."""
        return self.n_batched / self.n_batches

    @property
    def mean_batch_seconds(self) -> float:
        """Time of a batch."""
        return self.busy_seconds / self.n_batches


@contextmanager
def server(kind: Kind, device: str, n_workers: int) -> Iterator[BenchServer]:
    """With one thread for each worker, so that two workers share nothing but the memory's speed."""
    flags = ("--workers", str(n_workers), "--metrics-port", "0", "--max-queue-length", str(MAX_QUEUE_LENGTH))
    flags += ("--max-concurrent-calls", "2000", "--max-calls-per-caller", "2000")
    flags += ("--max-concurrent-streams", "2000")
    with running_server(kind.model.folder, *flags, device=device, n_threads=1) as running:
        yield running


def counters(running: BenchServer) -> Counters:
    """As the server's metrics have them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    sums: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return Counters(
        sums.get("tdb_device_busy_seconds_total", 0.0),
        sums.get("tdb_batch_calls_count", 0.0),
        sums.get("tdb_batch_calls_sum", 0.0),
        sums["process_cpu_seconds_total"],
    )


def measured_figures(kind: Kind, running: BenchServer, seconds: float) -> Figures:
    """Closed loops of 1, 2, 4 and 8 callers, who get larger and larger batches.

    Args:
        seconds: of each loop.
    """
    _closed_loop(kind, running, 1, 2.0)  # warm-up
    before = _seconds_of_validation(kind, running)
    levels = [_level(kind, running, n_callers, seconds) for n_callers in N_CALLERS]
    alone = levels[0]
    sizes = [one.n_calls for one in levels]
    per_call, fixed = np.polyfit(sizes, [one.batch_seconds for one in levels], 1)
    if fixed < 0:
        per_call, fixed = float(np.mean([one.batch_seconds / one.n_calls for one in levels])), 0.0
    shared_per_call = max(0.0, np.polyfit(sizes, [one.shared_seconds for one in levels], 1)[0])
    after = float(np.mean([one.front_seconds for one in levels])) - before
    worker_seconds = np.array(alone.worker_seconds)
    ratios = np.quantile(worker_seconds, (np.arange(N_RATIOS) + 0.5) / N_RATIOS)
    return Figures(
        shared_fixed=float(fixed),
        shared_per_call=float(shared_per_call),
        own=float(per_call - shared_per_call),
        ratios=tuple(map(float, ratios / ratios.mean())),
        front_before=before,
        front_after=after,
        around=float(np.mean(alone.latencies) - before - fixed - per_call - after),
        caller=_caller_seconds(kind, running),
    )


@dataclass(frozen=True)
class Level:
    """A closed loop.

    Attributes:
        n_calls: mean of a batch.
        batch_seconds: mean of a batch, as the front sees it.
        shared_seconds: mean that a batch takes to go through the model.
        front_seconds: of the front's processor time, per call.
        latencies: of each call.
        worker_seconds: that the worker spent on each call, its share of the batch.
    """

    n_calls: float
    batch_seconds: float
    shared_seconds: float
    front_seconds: float
    latencies: list[float]
    worker_seconds: list[float]


def _level(kind: Kind, running: BenchServer, n_callers: int, seconds: float) -> Level:
    before = counters(running)
    calls = _closed_loop(kind, running, n_callers, seconds)
    counted = counters(running) - before
    spent = [timings(DebugResponse.FromString(answer).timings) for _, answer in calls]
    shared = [one.forward_seconds + one.backward_seconds for one in spent]
    own = [one.derive_seconds + one.score_seconds for one in spent]
    return Level(
        n_calls=counted.mean_batch,
        batch_seconds=counted.mean_batch_seconds,
        shared_seconds=float(np.mean(shared)),
        front_seconds=counted.front_seconds / counted.n_batched,
        latencies=[latency for latency, _ in calls],
        worker_seconds=[sum(both) for both in zip(shared, own, strict=True)],
    )


def _closed_loop(
    kind: Kind, running: BenchServer, n_callers: int, seconds: float
) -> list[tuple[float, bytes]]:
    """Callers who call again as soon as they have their answer, which is only looked at afterwards.

    Returns:
        Seconds and answer of each call.
    """
    prompts = itertools.islice(kind.sub_requests(seed=n_callers), N_PROMPTS)
    requests = itertools.cycle([debug_request([one]) for one in prompts])
    return asyncio.run(_call_again_and_again(running.address, requests, n_callers, seconds))


async def _call_again_and_again(
    address: str, requests: Iterator[DebugRequest], n_callers: int, seconds: float
) -> list[tuple[float, bytes]]:
    found: list[tuple[float, bytes]] = []
    async with Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open_async() as channel:
        debug = channel.unary_unary(f"{SERVICE}/Debug", DebugRequest.SerializeToString)
        ends_at = time.monotonic() + seconds

        async def keep_calling() -> None:
            while (begun_at := time.monotonic()) < ends_at:
                answer: bytes = await debug(next(requests), timeout=CALL_SECONDS)
                found.append((time.monotonic() - begun_at, answer))

        await asyncio.gather(*(keep_calling() for _ in range(n_callers)))
    return found


def _seconds_of_validation(kind: Kind, running: BenchServer) -> float:
    """Processor time of the front for a call that it only checks."""
    before = counters(running)
    with Connection(running.address).open() as channel:
        debug = TransformerDebuggerServiceStub(channel).Debug
        for one in itertools.islice(kind.sub_requests(seed=3), N_VALIDATED):
            debug(debug_request([one], validate_only=True), timeout=CALL_SECONDS)
    return (counters(running) - before).front_seconds / N_VALIDATED


def _caller_seconds(kind: Kind, running: BenchServer) -> float:
    """Processor time of this process for each call of an open loop."""
    before = time.process_time()
    latencies, _ = open_loop(kind, running, CALLER_CALLS_PER_SECOND, CALLER_SECONDS)
    return (time.process_time() - before) / len(latencies)


def open_loop(
    kind: Kind, running: BenchServer, calls_per_second: float, seconds: float
) -> tuple[np.ndarray, Counters]:
    """Calls that come at the moments of `MOMENTS_SEED`, whether others are answered or not.

    Returns:
        Seconds of each call, [n], and what the server counted meanwhile.
    """
    before = counters(running)
    prompts = kind.sub_requests(seed=99)
    coming = itertools.takewhile(lambda moment: moment < seconds, moments(calls_per_second, MOMENTS_SEED))
    requests = [(moment, debug_request([next(prompts)])) for moment in coming]
    latencies = np.array(asyncio.run(_call_at(running.address, requests)))
    return latencies, counters(running) - before


async def _call_at(address: str, requests: list[tuple[float, DebugRequest]]) -> list[float]:
    async with Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open_async() as channel:
        # Answers are not looked at: this process shall take little time from the servers.
        debug = channel.unary_unary(f"{SERVICE}/Debug", DebugRequest.SerializeToString)
        begun_at = time.monotonic()

        async def call(moment: float, request: DebugRequest) -> float:
            await asyncio.sleep(begun_at + moment - time.monotonic())
            await debug(request, timeout=CALL_SECONDS)
            return time.monotonic() - begun_at - moment

        return list(await asyncio.gather(*(call(*one) for one in requests)))

"""Real servers under a known load, for the scale model: what they and their callers take."""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from tdb_client import DebugSubRequest
from tdb_client.connection import Connection
from tdb_client.encoding import debug_request
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from benchmarks.caller import MAX_RECEIVE_BYTES, SERVICE
from benchmarks.models import BenchModel
from benchmarks.prompts import Words
from benchmarks.server import BenchServer, processor_seconds, running_server

K = 10
CALL_SECONDS = 120.0
N_PROMPTS = 200
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
class Spent:
    """What was spent on a run, or since everything started.

    Attributes:
        n_batches: that workers ran.
        n_batched: calls in them.
        worker: processor seconds of all workers.
        front: the same of the front.
        main_thread: the same of the front's main thread; others of its threads read what workers send.
        caller: the same of this process.
        seconds: of the clock.
    """

    n_batches: float
    n_batched: float
    worker: float
    front: float
    main_thread: float
    caller: float
    seconds: float

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) - getattr(other, one.name) for one in fields(self)))

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def mean_batch(self) -> float:
        """Calls in a batch."""
        return self.n_batched / self.n_batches


@contextmanager
def server(kind: Kind, device: str, n_workers: int) -> Iterator[BenchServer]:
    """With one thread for each worker, so that two workers share nothing but the memory's speed."""
    flags = ("--workers", str(n_workers), "--metrics-port", "0", "--max-queue-length", str(MAX_QUEUE_LENGTH))
    flags += ("--max-concurrent-calls", "2000", "--max-calls-per-caller", "2000")
    flags += ("--max-concurrent-streams", "2000")
    with running_server(kind.model.folder, *flags, device=device, n_threads=1) as running:
        yield running


def spent(running: BenchServer) -> Spent:
    """As the server's metrics and the system have it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    sums: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    front = running.front_pid
    return Spent(
        sums.get("tdb_batch_calls_count", 0.0),
        sums.get("tdb_batch_calls_sum", 0.0),
        sum(processor_seconds(f"{pid}") for pid in running.worker_pids),
        processor_seconds(f"{front}"),
        processor_seconds(f"{front}/task/{front}"),
        time.process_time(),
        time.monotonic(),
    )


def validation(kind: Kind, running: BenchServer, n_calls: int) -> Spent:
    """So many calls, one after the other, that the front only checks."""
    before = spent(running)
    with Connection(running.address).open() as channel:
        debug = TransformerDebuggerServiceStub(channel).Debug
        for one in itertools.islice(kind.sub_requests(seed=3), n_calls):
            debug(debug_request([one], validate_only=True), timeout=CALL_SECONDS)
    return spent(running) - before


def closed_loop(
    kind: Kind, running: BenchServer, n_callers: int, seconds: float
) -> tuple[list[bytes], Spent]:
    """Callers who call again as soon as they have their answer, which is only looked at afterwards.

    Returns:
        The answers, and what was spent.
    """
    prompts = itertools.islice(kind.sub_requests(seed=n_callers), N_PROMPTS)
    requests = itertools.cycle([debug_request([one]) for one in prompts])
    before = spent(running)
    answers = asyncio.run(_call_again_and_again(running.address, requests, n_callers, seconds))
    return answers, spent(running) - before


async def _call_again_and_again(
    address: str, requests: Iterator[DebugRequest], n_callers: int, seconds: float
) -> list[bytes]:
    found: list[bytes] = []
    async with Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open_async() as channel:
        debug = channel.unary_unary(f"{SERVICE}/Debug", DebugRequest.SerializeToString)
        ends_at = time.monotonic() + seconds

        async def keep_calling() -> None:
            while time.monotonic() < ends_at:
                found.append(await debug(next(requests), timeout=CALL_SECONDS))

        await asyncio.gather(*(keep_calling() for _ in range(n_callers)))
    return found


def open_loop(
    kind: Kind, running: BenchServer, coming: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, Spent]:
    """Calls that come at these moments, in seconds, whether others are answered or not.

    Returns:
        When each was really sent and how long it took, [n] seconds, and what was spent.
    """
    prompts = kind.sub_requests(seed=99)
    requests = [(moment, debug_request([next(prompts)])) for moment in coming]
    before = spent(running)
    sent, latencies = np.array(asyncio.run(_call_at(running.address, requests))).T
    return sent, latencies, spent(running) - before


async def _call_at(address: str, requests: list[tuple[float, DebugRequest]]) -> list[tuple[float, float]]:
    async with Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open_async() as channel:
        # Answers are not looked at: this process shall take little time from the servers.
        debug = channel.unary_unary(f"{SERVICE}/Debug", DebugRequest.SerializeToString)
        begun_at = time.monotonic()

        async def call(moment: float, request: DebugRequest) -> tuple[float, float]:
            await asyncio.sleep(begun_at + moment - time.monotonic())
            sent = time.monotonic() - begun_at
            await debug(request, timeout=CALL_SECONDS)
            return sent, time.monotonic() - begun_at - sent

        return list(await asyncio.gather(*(call(*one) for one in requests)))

"""Calls per second when several callers each send the next call as soon as the last is answered."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tdb_client import ModelInfo

from benchmarks.caller import Caller
from benchmarks.cases import Case
from benchmarks.prompts import Words

N_CALLERS = (1, 4, 16)
N_TOKENS = 64


@dataclass(frozen=True)
class Throughput:
    """What so many callers got.

    Attributes:
        n_callers: at the same time, each with its own connection.
        n_calls: answered in all.
        calls_per_second: of all callers together.
        p50: seconds that the call in the middle took.
        p95: seconds that 95 of 100 calls took at most.
    """

    model: str
    n_tokens: int
    n_callers: int
    n_calls: int
    calls_per_second: float
    p50: float
    p95: float


def measure_throughput(
    address: str, model: str, tokenizer_folder: Path, info: ModelInfo, case: Case, seconds: float
) -> list[Throughput]:
    """Plain calls of random prompts by 1, 4 and 16 callers, for some seconds each."""
    words = [Words(tokenizer_folder, seed=1000 + index) for index in range(max(N_CALLERS))]
    measured = []
    for n_callers in N_CALLERS:
        _load(address, info, case, words[:n_callers], 0.0)  # warm-up: one call each
        start = time.perf_counter()
        latencies = _load(address, info, case, words[:n_callers], seconds)
        elapsed = time.perf_counter() - start
        p50, p95 = np.percentile(latencies, (50, 95))
        measured.append(
            Throughput(
                model, N_TOKENS, n_callers, len(latencies), len(latencies) / elapsed, float(p50), float(p95)
            )
        )
    return measured


def _load(address: str, info: ModelInfo, case: Case, words: list[Words], seconds: float) -> list[float]:
    """Callers start together and begin no call after so many seconds; every one makes at least one.

    Returns:
        What each call took.
    """
    together = threading.Barrier(len(words))

    def call_again_and_again(own_words: Words) -> list[float]:
        latencies: list[float] = []
        with Caller(address) as caller:
            together.wait()
            deadline = time.monotonic() + seconds
            while not latencies or time.monotonic() < deadline:
                sub_requests = case.sub_requests(own_words.prompt(N_TOKENS), info, own_words)
                latencies.append(caller.stream_debug(sub_requests).seconds)
        return latencies

    with ThreadPoolExecutor(len(words)) as threads:
        return [one for latencies in threads.map(call_again_and_again, words) for one in latencies]

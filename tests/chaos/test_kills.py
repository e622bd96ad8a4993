"""Workers are killed again and again, and no call that was accepted is lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, StreamDebugResponse

from tests.chaos.metrics_page import reading
from tests.chaos.refused import Refused, refused
from tests.chaos.requests import VARIED_REQUESTS
from tests.chaos.vitals import vitals, wait_until
from tests.chaos.wire_answers import Answer, answer_of_response, answer_of_stream, difference
from tests.running_server import RunningServer

N_CALLERS = 8
RECOVERY_SECONDS = 60.0
PATIENCE_SECONDS = 120.0
"""A call that has waited for this long is lost."""


@dataclass
class Tally:
    """What came of one caller's calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_seconds: float = 0.0


def test_no_accepted_call_is_lost(start_watched, extent):
    server = start_watched("--workers", "2")
    wait_until(lambda: reading(server, "tdb_worker_ready") == 2, RECOVERY_SECONDS)
    undisturbed = [answer_of_response(server.debugger.Debug(request)) for request in VARIED_REQUESTS]
    n_files = vitals(server.process.pid).n_open_files
    n_restarts = reading(server, "tdb_worker_restarts_total")

    stops_at = time.monotonic() + extent.kill_seconds
    with ThreadPoolExecutor(N_CALLERS) as callers:
        running = [
            callers.submit(_keep_calling, server, undisturbed, stops_at, seed) for seed in range(N_CALLERS)
        ]
        n_kills = _keep_killing(server, stops_at, extent.kill_every_seconds)
        tallies = [one.result() for one in running]
    begun_at = time.monotonic()
    wait_until(lambda: reading(server, "tdb_worker_ready") == 2, RECOVERY_SECONDS)
    recovery_seconds = time.monotonic() - begun_at

    outcomes = sum((one.outcomes for one in tallies), Counter())
    longest = max(one.longest_seconds for one in tallies)
    print(f"\n{n_kills} kills in {extent.kill_seconds:g} s, then whole again after {recovery_seconds:.1f} s:")
    print(f"{dict(outcomes)}, the longest call took {longest:.1f} s")
    assert [fault for one in tallies for fault in one.faults] == []
    assert n_kills >= extent.kill_seconds / extent.kill_every_seconds - 1
    assert outcomes["answered"] > N_CALLERS

    assert reading(server, "tdb_worker_restarts_total") == n_restarts + n_kills
    assert len(server.worker_pids()) == 2
    with ThreadPoolExecutor(N_CALLERS) as callers:
        answers = callers.map(server.debugger.Debug, VARIED_REQUESTS)
        assert [
            difference(answer_of_response(one), expected)
            for one, expected in zip(answers, undisturbed, strict=True)
        ] == [None] * len(VARIED_REQUESTS)
    wait_until(lambda: vitals(server.process.pid).n_open_files <= n_files, 5)


def _keep_killing(server: RunningServer, stops_at: float, every_seconds: float) -> int:
    chance, n_kills = random.Random(0), 0
    while time.monotonic() + every_seconds < stops_at:
        time.sleep(every_seconds)
        wait_until(lambda: bool(server.worker_pids()), RECOVERY_SECONDS)
        os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
        n_kills += 1
    return n_kills


def _keep_calling(server: RunningServer, undisturbed: Sequence[Answer], stops_at: float, seed: int) -> Tally:
    chance, tally = random.Random(seed), Tally()
    while time.monotonic() < stops_at:
        which = chance.randrange(len(VARIED_REQUESTS))
        call = chance.choice((_unary, _streamed))
        begun_at = time.monotonic()
        outcome, answer = call(server, VARIED_REQUESTS[which], tally)
        tally.outcomes[outcome] += 1
        tally.longest_seconds = max(tally.longest_seconds, time.monotonic() - begun_at)
        if answer is not None and (what := difference(answer, undisturbed[which])):
            tally.faults.append(f"another answer to request {which}: {what}")
        if outcome == "refused":
            time.sleep(0.1)
    return tally


def _unary(server: RunningServer, request: DebugRequest, tally: Tally) -> tuple[str, Answer | None]:
    try:
        response = server.debugger.Debug(request, timeout=PATIENCE_SECONDS)
    except grpc.RpcError as error:
        return _failed(refused(error), tally), None
    return "answered", answer_of_response(response)


def _streamed(server: RunningServer, request: DebugRequest, tally: Tally) -> tuple[str, Answer | None]:
    events: list[StreamDebugResponse] = []
    try:
        for event in server.debugger.StreamDebug(request, timeout=PATIENCE_SECONDS):
            events.append(event)  # noqa: PERF402 - what came before a failure counts
    except grpc.RpcError as error:
        why = refused(error)
        had_results = any(event.WhichOneof("event") in ("result", "values") for event in events)
        if had_results and (why.code, why.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKER_DIED"):
            if why.retry_seconds is None:
                tally.faults.append("a stream that ended early does not say when to try again")
            return "ended early", None
        return _failed(why, tally), None
    return "answered", answer_of_stream(events)


def _failed(why: Refused, tally: Tally) -> str:
    """Only a call that was never accepted may fail: when no worker is ready, with a time to retry."""
    is_at_the_door = (why.code, why.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER_READY")
    if is_at_the_door and why.retry_seconds is not None:
        return "refused"
    tally.faults.append(str(why))
    return "failed"

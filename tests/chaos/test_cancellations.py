"""Calls that nobody waits for any more leave nothing behind: no memory, no work, no open files."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request
from tests.chaos.vitals import Vitals, seconds_until_idle, vitals, wait_until
from tests.running_server import RunningServer

N_AT_ONCE = 8
LONGEST_SECONDS = 0.5
"""Most of the calls would take longer."""
REQUESTS = (
    debug_request(),
    debug_request(LONG_PROMPT, k=20),
    debug_request(LONG_PROMPT, n_sub_requests=4, k=200),
    debug_request(LONG_PROMPT, n_sub_requests=16, k=1000),
)
MAX_GROWTH = 1.05
SETTLED_GROWTH = 1.01
MAX_WARM_UPS = 6
MORE_ROUNDS = 2
"""A moment with more answers open than ever before takes memory once; what leaks grows in every round."""
SHARED_MEMORY = Path("/dev/shm")


def test_cancelled_calls_leave_nothing_behind(start_watched, extent):
    server = start_watched()
    (worker,) = server.worker_pids()
    front = server.process.pid
    expected = server.debugger.Debug(REQUESTS[0]).sub_responses
    before = _warmed_up(server, (front, worker), extent.n_cancelled)
    segments = set(SHARED_MEMORY.iterdir())
    n_before = _n_answered(server)

    _cancel_calls(server, extent.n_cancelled, seed=1)
    idle_seconds = seconds_until_idle(worker, extent.stop_seconds)
    begun_at = time.monotonic()
    assert server.debugger.Debug(REQUESTS[0]).sub_responses == expected
    answer_seconds = time.monotonic() - begun_at

    n_answered = _n_answered(server) - n_before - 1
    after = _both_at_rest(server, before)
    growth = _lasting_growth(server, before, after, extent.n_cancelled)
    print(f"\n{extent.n_cancelled} calls, {n_answered:.0f} of them done before they were cancelled.")
    print(f"Memory of the front times {growth[front]:.3f}, of the worker times {growth[worker]:.3f}.")
    print(f"The worker was idle {idle_seconds:.1f} s later; the next call took {answer_seconds:.2f} s.")
    assert n_answered < 0.5 * extent.n_cancelled, "most calls must be cancelled before they are done"
    assert max(growth.values()) <= MAX_GROWTH
    for pid, earlier in before.items():
        assert after[pid].n_open_files <= earlier.n_open_files
        assert after[pid].n_shared_segments == earlier.n_shared_segments == 0
        assert after[pid].shared_bytes <= earlier.shared_bytes
    assert not _left_in_shared_memory(segments)
    assert server.worker_pids() == [worker]


def _warmed_up(server: RunningServer, pids: tuple[int, ...], n_calls: int) -> dict[int, Vitals]:
    """The processes once they take little more memory from round to round; what leaks never gets there."""
    before: dict[int, Vitals] = {}
    for seed in range(MAX_WARM_UPS):
        _cancel_calls(server, n_calls, seed=100 + seed)
        now = _both_at_rest(server, pids)
        if before and all(
            now[pid].anonymous_bytes <= SETTLED_GROWTH * before[pid].anonymous_bytes for pid in pids
        ):
            return now
        before = now
    return before


def _lasting_growth(
    server: RunningServer, before: dict[int, Vitals], after: dict[int, Vitals], n_calls: int
) -> dict[int, float]:
    """How much more memory each process takes after a round of calls: the least of up to three rounds."""
    growth = _growth(before, after)
    for seed in range(2, 2 + MORE_ROUNDS):
        if max(growth.values()) <= MAX_GROWTH:
            break
        before = after
        _cancel_calls(server, n_calls, seed)
        after = _both_at_rest(server, before)
        growth = {pid: min(growth[pid], now) for pid, now in _growth(before, after).items()}
    return growth


def _growth(before: dict[int, Vitals], after: dict[int, Vitals]) -> dict[int, float]:
    return {pid: after[pid].anonymous_bytes / before[pid].anonymous_bytes for pid in before}


def _cancel_calls(server: RunningServer, n_calls: int, seed: int) -> None:
    """Begins calls, a few at a time, and ends each at a random moment in one of the ways there are."""
    chance = random.Random(seed)
    ways = (_hang_up, _cancel_waiting, _cancel_reading, _run_out_of_time)
    with ThreadPoolExecutor(N_AT_ONCE) as callers:
        ended = [
            callers.submit(
                ways[number % len(ways)],
                server.port,
                chance.choice(REQUESTS),
                chance.uniform(0, LONGEST_SECONDS),
            )
            for number in range(n_calls)
        ]
    for one in ended:
        one.result()


def _cancel_waiting(port: int, request: DebugRequest, seconds: float) -> None:
    with _channel(port) as channel:
        call = TransformerDebuggerServiceStub(channel).Debug.future(request)
        time.sleep(seconds)
        call.cancel()


def _cancel_reading(port: int, request: DebugRequest, seconds: float) -> None:
    with _channel(port) as channel:
        stream = TransformerDebuggerServiceStub(channel).StreamDebug(request)
        timer = threading.Timer(seconds, stream.cancel)
        timer.start()
        _read_to_the_end(stream, {grpc.StatusCode.CANCELLED})
        timer.join()


def _run_out_of_time(port: int, request: DebugRequest, seconds: float) -> None:
    with _channel(port) as channel:
        stream = TransformerDebuggerServiceStub(channel).StreamDebug(request, timeout=seconds)
        _read_to_the_end(stream, {grpc.StatusCode.DEADLINE_EXCEEDED})


def _hang_up(port: int, request: DebugRequest, seconds: float) -> None:
    """The connection goes, in the middle of a call whose answer nobody reads."""
    with _channel(port) as channel:
        TransformerDebuggerServiceStub(channel).StreamDebug(request)
        time.sleep(seconds)


def _read_to_the_end(stream: grpc.Call, allowed: set[grpc.StatusCode]) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in stream:
            pass
    assert stream.code() in {grpc.StatusCode.OK, *allowed}, stream.details()


def _channel(port: int) -> grpc.Channel:
    options = [("grpc.max_receive_message_length", 64 * 2**20), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options)


def _both_at_rest(server: RunningServer, pids: Iterable[int]) -> dict[int, Vitals]:
    return {pid: _at_rest(server, pid) for pid in pids}


def _at_rest(server: RunningServer, pid: int) -> Vitals:
    """A process once no call is open any more."""
    wait_until(lambda: _n_open_calls(server) == 0, 10)
    time.sleep(0.5)
    return vitals(pid)


def _n_open_calls(server: RunningServer) -> float:
    started = reading(server, "grpc_server_call_started_total")
    return started - reading(server, "grpc_server_call_duration_seconds_count")


def _n_answered(server: RunningServer) -> float:
    return reading(server, "grpc_server_call_duration_seconds_count", grpc_status="OK")


def _left_in_shared_memory(earlier: set[Path]) -> set[Path]:
    """New segments that no process holds: whoever made them has lost them."""
    new = set(SHARED_MEMORY.iterdir()) - earlier
    if not new:
        return set()
    held = "".join(_maps(process) for process in Path("/proc").glob("[0-9]*"))
    return {path for path in new if str(path) not in held and path.exists()}


def _maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:
        return ""

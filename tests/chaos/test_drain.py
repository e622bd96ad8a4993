"""SIGTERM under load: what runs and waits is finished within the grace, and never longer."""

from __future__ import annotations

import signal
import threading
import time

import grpc

from tests.chaos.draining import draining
from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import is_running, wait_until
from tests.running_server import RunningServer

N_CALLS = 6
EXIT_SECONDS = 5.0
"""On top of the grace and the time to stop: two workers are ended, and Python exits."""


def test_running_and_waiting_calls_are_finished(start_watched, extent):
    server = start_watched("--workers", "2", "--grace-seconds", "60", "--max-batch-tokens", "1")
    workers = server.worker_pids()
    n_before = reading(server, "grpc_server_call_started_total")
    request = debug_request(LONG_PROMPT, k=100)
    streams = [server.debugger.StreamDebug(request) for _ in range(N_CALLS)]
    unary = [server.debugger.Debug.future(debug_request(LONG_PROMPT, k=50)) for _ in range(N_CALLS)]
    wait_until(lambda: reading(server, "grpc_server_call_started_total") >= n_before + 2 * N_CALLS, 20)

    with draining(server):
        late = server.debugger.Debug.future(debug_request())
        readers = [threading.Thread(target=_read, args=(one,)) for one in streams]
        for one in readers:
            one.start()
        assert {len(one.result().sub_responses) for one in unary} == {1}
        for one in readers:
            one.join()
        why = refused(late.exception())
    assert {one.code() for one in streams} == {grpc.StatusCode.OK}
    assert (why.code, why.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert why.retry_seconds is not None
    _assert_gone(server, workers, seconds=extent.stop_seconds + EXIT_SECONDS)


def test_what_outlasts_the_grace_is_cancelled(start_watched, extent):
    """Among it a stream that nobody reads."""
    grace_seconds = 1.0
    server = start_watched("--workers", "2", "--grace-seconds", str(grace_seconds))
    workers = server.worker_pids()
    streams = [server.debugger.StreamDebug(heavy_request(), timeout=60) for _ in range(N_CALLS)]
    assert next(streams[0]).HasField("started")
    reader = threading.Thread(target=_read, args=(streams[1],))
    reader.start()
    wait_until(lambda: reading(server, "grpc_server_call_started_total") >= N_CALLS, 20)

    server.process.send_signal(signal.SIGTERM)
    _assert_gone(server, workers, seconds=grace_seconds + extent.stop_seconds + EXIT_SECONDS)
    reader.join()
    for one in streams:
        _read(one)  # what had come, and the status behind it
    codes = {one.code() for one in streams[1:]}
    assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def _read(stream: grpc.Call) -> None:
    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        pass  # the test looks at its code


def _assert_gone(server: RunningServer, workers: list[int], seconds: float) -> None:
    begun_at = time.monotonic()
    assert server.process.wait(timeout=seconds) == 0
    print(f"\ngone {time.monotonic() - begun_at:.1f} s after the signal or the last answer")
    assert not [pid for pid in workers if is_running(pid)]
    assert not server.ready_file.exists()

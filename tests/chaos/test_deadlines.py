"""A call whose time is up never starts, or stops between layers and results."""

from __future__ import annotations

import time

import grpc
import pytest

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import cpu_share, wait_until

EXPIRED_SECONDS = 0.3
N_EXPIRED = 5
STOP_SECONDS = 1.0


def test_expired_in_the_queue_never_runs(start_watched):
    server = start_watched("--max-batch-tokens", "1")
    running = server.debugger.StreamDebug(heavy_request())
    assert next(running).HasField("started")
    waiting = [
        server.debugger.Debug.future(debug_request(), timeout=EXPIRED_SECONDS) for _ in range(N_EXPIRED)
    ]
    for one in waiting:
        assert isinstance(one.exception(), grpc.RpcError)
        assert one.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: reading(server, "tdb_queue_length") == 0, 5)
    assert reading(server, "tdb_batch_calls_sum") == 0, "the first call is still running"
    running.cancel()
    assert server.debugger.Debug(debug_request()).sub_responses
    assert reading(server, "tdb_batch_calls_sum") == 2, "the cancelled one and the last one"


def test_expired_while_running_stops(start_watched):
    server = start_watched()
    (worker,) = server.worker_pids()
    begun_at = time.monotonic()
    assert list(server.debugger.StreamDebug(heavy_request()))[-1].HasField("finished")
    whole_seconds = time.monotonic() - begun_at
    assert whole_seconds > 1.0, "else there would be nothing to stop"
    for fraction in (0.1, 0.3, 0.6):
        with pytest.raises(grpc.RpcError) as caught:
            list(server.debugger.StreamDebug(heavy_request(), timeout=fraction * whole_seconds))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(STOP_SECONDS)
        assert cpu_share(worker, 0.3) < 0.1
    assert reading(server, "tdb_batch_calls_sum") == 4


def test_the_servers_own_time_limit_stops_a_call(start_watched):
    server = start_watched("--max-call-seconds", "0.5")
    (worker,) = server.worker_pids()
    with pytest.raises(grpc.RpcError) as caught:
        list(server.debugger.StreamDebug(heavy_request()))
    why = refused(caught.value)
    assert (why.code, why.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TIME_LIMIT")
    time.sleep(STOP_SECONDS)
    assert cpu_share(worker, 0.3) < 0.1


def test_cancelled_in_company_leaves_the_others_alone(start_watched):
    """Calls of one batch share a pass; the one that is given up does not take the others with it."""
    server = start_watched()
    stops = [server.debugger.Debug.future(debug_request(k=1), timeout=0.001) for _ in range(20)]
    stays = [server.debugger.Debug.future(debug_request(LONG_PROMPT, k=20)) for _ in range(4)]
    assert all(one.exception() is not None for one in stops)
    assert {len(one.result().sub_responses) for one in stays} == {1}

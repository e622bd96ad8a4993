"""A call whose time is up never starts, or stops between layers and results."""

from __future__ import annotations

import contextlib

import grpc
import pytest

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import LONG_PROMPT, debug_request, endless_request
from tests.chaos.vitals import seconds_until_idle, wait_until
from tests.chaos.wire_answers import answer_of_response, difference

EXPIRED_SECONDS = 0.3
N_EXPIRED = 5


def test_expired_in_the_queue_never_runs(watched_alone):
    n_before = reading(watched_alone, "tdb_batch_calls_sum")
    running = watched_alone.debugger.StreamDebug(endless_request())
    assert next(running).HasField("started")
    waiting = [
        watched_alone.debugger.Debug.future(debug_request(), timeout=EXPIRED_SECONDS)
        for _ in range(N_EXPIRED)
    ]
    for one in waiting:
        assert isinstance(one.exception(), grpc.RpcError)
        assert one.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: reading(watched_alone, "tdb_queue_length") == 0, 5)
    assert reading(watched_alone, "tdb_batch_calls_sum") == n_before, "the first call must still be running"
    running.cancel()
    assert watched_alone.debugger.Debug(debug_request()).sub_responses
    assert reading(watched_alone, "tdb_batch_calls_sum") == n_before + 2, "the cancelled one and the last"


def test_expired_while_running_stops(watched, extent):
    (worker,) = watched.worker_pids()
    n_before = reading(watched, "tdb_batch_calls_sum")
    for seconds in (1.0, 1.5):
        with pytest.raises(grpc.RpcError) as caught:
            list(watched.debugger.StreamDebug(endless_request(), timeout=seconds))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        seconds_until_idle(worker, extent.stop_seconds)
    assert reading(watched, "tdb_batch_calls_sum") == n_before + 2, "both have run"


def test_the_servers_own_time_limit_stops_a_call(start_watched, extent):
    server = start_watched("--max-call-seconds", "0.5")
    (worker,) = server.worker_pids()
    with pytest.raises(grpc.RpcError) as caught:
        list(server.debugger.StreamDebug(endless_request()))
    why = refused(caught.value)
    assert (why.code, why.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TIME_LIMIT")
    seconds_until_idle(worker, extent.stop_seconds)


def test_expired_in_company_leaves_the_others_alone(watched):
    """Calls of one batch share a pass; those whose time is up do not take the others with them."""
    request = debug_request(LONG_PROMPT, k=50)
    expected = answer_of_response(watched.debugger.Debug(request))
    stays = [watched.debugger.Debug.future(request) for _ in range(4)]
    stops = [watched.debugger.StreamDebug(request, timeout=0.1 * number) for number in range(1, 9)]
    assert [difference(answer_of_response(one.result()), expected) for one in stays] == [None] * 4
    for one in stops:
        with contextlib.suppress(grpc.RpcError):
            list(one)
    assert {one.code() for one in stops} <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK}

"""A full queue refuses at once, also while workers and front are busy."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import debug_request, endless_request, heavy_request
from tests.chaos.vitals import cpu_seconds, seconds_until_idle, wait_until
from tests.chaos.watched_servers import QUEUE_LENGTH
from tests.running_server import RunningServer

N_REFUSED = 100


@pytest.fixture
def full(watched_alone) -> Iterator[RunningServer]:
    """A server whose worker computes, whose front sends results, and whose queue has no place left."""
    server = watched_alone
    streams = [server.debugger.StreamDebug(endless_request())]
    assert next(streams[0]).HasField("started")
    reader = threading.Thread(target=_read_until_cancelled, args=(streams[0],))
    reader.start()
    streams += [server.debugger.StreamDebug(heavy_request()) for _ in range(QUEUE_LENGTH)]
    wait_until(lambda: reading(server, "tdb_queue_length") == QUEUE_LENGTH, 10)
    yield server
    for one in streams:
        one.cancel()
    reader.join()
    wait_until(lambda: reading(server, "tdb_queue_length") == 0, 10)
    (worker,) = server.worker_pids()
    seconds_until_idle(worker, 60)


def test_refused_in_no_time(full, extent):
    (worker,) = full.worker_pids()
    reasons, seconds = [], []
    cpu_before, started_at = cpu_seconds(worker), time.monotonic()
    for number in range(N_REFUSED):
        call = full.debugger.Debug if number % 2 else _first_event(full)
        begun_at = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            call(debug_request())
        seconds.append(time.monotonic() - begun_at)
        reasons.append(refused(caught.value))
    used = cpu_seconds(worker) - cpu_before
    share = used / (time.monotonic() - started_at)
    assert reading(full, "tdb_queue_length") == QUEUE_LENGTH

    milliseconds = [1000 * one for one in sorted(seconds)]
    print(f"\n{N_REFUSED} refusals while the worker used {share:.0%} of a core, in milliseconds:")
    print(f"{statistics.median(milliseconds):.1f} median, {milliseconds[int(0.95 * N_REFUSED)]:.1f} at 95 %,")
    print(f"{milliseconds[-1]:.1f} at most")
    assert {one.code for one in reasons} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert {one.reason for one in reasons} == {"QUEUE_FULL"}
    assert all(one.retry_seconds is not None and one.retry_seconds > 0 for one in reasons)
    assert used > 0, "the worker must be busy, else this says nothing"
    assert statistics.median(seconds) < extent.refusal_seconds


def _first_event(server):
    return lambda request: next(server.debugger.StreamDebug(request))


def _read_until_cancelled(stream) -> None:
    with pytest.raises(grpc.RpcError):
        for _ in stream:
            pass

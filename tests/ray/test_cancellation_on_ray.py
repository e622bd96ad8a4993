"""What nobody wants any more, replicas stop computing."""

from __future__ import annotations

import threading
import time

import grpc
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from tests.chaos.metrics_page import reading
from tests.chaos.requests import LONG_PROMPT, debug_request, heavy_request
from tests.chaos.vitals import cpu_seconds, cpu_share, wait_until
from tests.chaos.wire_answers import answer_of_response, difference
from tests.ray.lasting_request import lasting_request

IDLE_SHARE = 0.3
"""Of one processor; a replica that computes takes nearly all of it, Ray's own threads a few per cent."""
STOP_SECONDS = 2.0
QUEUED_SECONDS = 10.0


def test_a_cancelled_call_stops_its_replica(start_on_ray, replicas):
    server = start_on_ray()
    (replica,) = replicas()
    request, whole_seconds = lasting_request(server, replica)

    for hang_up in (_cancel, _run_out_of_time):
        before = cpu_seconds(replica)
        hang_up(server, request, whole_seconds / 4)
        time.sleep(0.5)
        wait_until(lambda: cpu_share(replica, 0.5) < IDLE_SHARE, STOP_SECONDS)
        used = cpu_seconds(replica) - before
        assert used < 0.7 * whole_seconds, "it went on to the end"
        server.debugger.Debug(debug_request(), timeout=STOP_SECONDS)
    assert replicas() == [replica]


def test_a_call_that_waits_is_never_begun(start_on_ray, replicas):
    """It waits at Ray, beside the one that runs: a second worker exists to make Ray add a replica."""
    server = start_on_ray(
        *("--ray-max-workers", "2", "--ray-upscale-seconds", "300", "--max-batch-tokens", "1")
    )
    (replica,) = replicas()
    running = server.debugger.StreamDebug(heavy_request())
    assert next(running).HasField("started")
    waiting = [server.debugger.StreamDebug(heavy_request()) for _ in range(3)]
    assert next(waiting[0]).HasField("started")
    before = cpu_seconds(replica)
    for call in (*waiting, running):
        call.cancel()
    time.sleep(0.5)
    wait_until(lambda: cpu_share(replica, 0.5) < IDLE_SHARE, STOP_SECONDS)
    assert cpu_seconds(replica) - before < 3.0
    server.debugger.Debug(debug_request(), timeout=STOP_SECONDS)


def test_others_of_the_batch_go_on_without_it(start_on_ray, replicas):
    server = start_on_ray("--max-wait-milliseconds", "200", "--max-batch-seconds", "60")
    (replica,) = replicas()
    request = debug_request(LONG_PROMPT, k=20)
    expected = answer_of_response(server.debugger.Debug(request))

    def seconds_until_answered(*, is_cancelled: bool) -> float:
        """How much the replica computes before a small call is answered, behind a long one of its batch."""
        blocker = server.debugger.StreamDebug(long_request)
        assert next(blocker).HasField("started")
        heavy = server.debugger.StreamDebug(long_request)
        _wait_for_queue(server, 1)
        small = server.debugger.Debug.future(request)
        _wait_for_queue(server, 2)
        blocker.cancel()  # now the two that wait run together
        assert next(heavy).HasField("started")
        before = cpu_seconds(replica)
        if is_cancelled:
            heavy.cancel()
        reader = threading.Thread(target=_read, args=(heavy,))
        reader.start()
        assert difference(answer_of_response(small.result()), expected) is None
        seconds = cpu_seconds(replica) - before
        reader.join()
        return seconds

    long_request, long_seconds = lasting_request(server, replica)
    whole_seconds = seconds_until_answered(is_cancelled=False)
    assert whole_seconds > 0.5 * long_seconds, "the long call does not come first in the batch"
    assert seconds_until_answered(is_cancelled=True) < 0.7 * whole_seconds


def _wait_for_queue(server, n_calls: int) -> None:
    """Until so many calls wait: requests are read side by side, and a short one may overtake a long one."""
    wait_until(lambda: reading(server, "tdb_queue_length") == n_calls, QUEUED_SECONDS)


def _cancel(server, request: DebugRequest, _: float) -> None:
    stream = server.debugger.StreamDebug(request)
    for event in stream:
        if event.WhichOneof("event") == "result":
            stream.cancel()
            return


def _run_out_of_time(server, request: DebugRequest, seconds: float) -> None:
    stream = server.debugger.StreamDebug(request, timeout=seconds)
    _read(stream)
    assert stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def _read(stream: grpc.Call) -> None:
    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        pass  # the test looks at its code

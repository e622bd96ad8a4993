"""A real server whose worker computes on a GPU: goldens, callers together, and callers that leave."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.chaos.requests import VARIED_REQUESTS, heavy_request
from tests.chaos.vitals import seconds_until_idle
from tests.chaos.wire_answers import answer_of_response, difference
from tests.golden.compare import differences
from tests.golden.rounding_noise import without_rounding_noise
from tests.golden.test_goldens_over_the_wire import GOLDENS, over_grpc, read
from tests.gpu.memory import SLACK_BYTES, taken_bytes
from tests.running_server import RunningServer

WITHOUT_AUTOENCODERS = ("plain", "plain-long-k30", "ablate-many", "trace-head-v", "trace-neuron-ablate-head")
N_CALLERS, N_CALLS, N_CANCELLED = 8, 50, 20
STOP_SECONDS = 10.0


def test_the_worker_is_on_the_gpu(server: RunningServer, device: str) -> None:
    (worker,) = server.worker_pids()
    assert f"tdb-worker:{device}".encode() in Path(f"/proc/{worker}/cmdline").read_bytes()


@pytest.mark.parametrize("name", WITHOUT_AUTOENCODERS)
def test_answers_agree_with_golden(name: str, server: RunningServer) -> None:
    golden = read(GOLDENS / "tiny-a" / f"{name}.json.gz")
    body = over_grpc(server, golden["endpoint"], golden["request"])
    assert differences(without_rounding_noise(golden, body), body) == []


def test_callers_together_get_the_answers_of_callers_alone(server: RunningServer) -> None:
    alone = [answer_of_response(server.debugger.Debug(request)) for request in VARIED_REQUESTS]
    chosen = random.Random(0).choices(range(len(VARIED_REQUESTS)), k=N_CALLS)
    with ThreadPoolExecutor(N_CALLERS) as callers:
        together = callers.map(server.debugger.Debug, [VARIED_REQUESTS[which] for which in chosen])
        found = [
            difference(answer_of_response(one), alone[which])
            for one, which in zip(together, chosen, strict=True)
        ]
    assert found == [None] * N_CALLS


def test_fifty_calls_take_no_more_memory_than_the_first_few(server: RunningServer) -> None:
    for request in VARIED_REQUESTS:
        server.debugger.Debug(request)
    before = taken_bytes()
    for number in range(N_CALLS):
        server.debugger.Debug(VARIED_REQUESTS[number % len(VARIED_REQUESTS)])
    assert taken_bytes() <= before + SLACK_BYTES


def test_cancelled_calls_stop(server: RunningServer) -> None:
    """Each is cancelled as soon as it has begun, while its batch runs."""
    (worker,) = server.worker_pids()
    expected = answer_of_response(server.debugger.Debug(VARIED_REQUESTS[0]))
    list(server.debugger.StreamDebug(heavy_request()))
    before = taken_bytes()
    for _ in range(N_CANCELLED):
        stream = server.debugger.StreamDebug(heavy_request())
        assert next(stream).HasField("started")
        stream.cancel()
        with pytest.raises(grpc.RpcError):
            list(stream)
        assert stream.code() is grpc.StatusCode.CANCELLED
    seconds_until_idle(worker, STOP_SECONDS)
    assert difference(answer_of_response(server.debugger.Debug(VARIED_REQUESTS[0])), expected) is None
    assert server.worker_pids() == [worker]
    assert taken_bytes() <= before + SLACK_BYTES

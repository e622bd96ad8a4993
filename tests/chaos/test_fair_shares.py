"""Callers who ask for much beside one who asks for little."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from transformer_debugger.v1.call_pb2 import PRIORITY_SWEEP
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.metrics_page import reading
from tests.chaos.refused import refused
from tests.chaos.requests import debug_request, heavy_request
from tests.chaos.vitals import seconds_until_idle, wait_until
from tests.chaos.watched_servers import QUEUE_LENGTH, held_worker
from tests.running_server import RunningServer

N_HEAVY = 4


class Crowd:
    """Calls that take long, each on a connection of its own or all on one."""

    def __init__(
        self, server: RunningServer, n_calls: int, *, one_connection: bool, priority: int = 0
    ) -> None:
        own = (("grpc.use_local_subchannel_pool", 1),)
        n_channels = 1 if one_connection else n_calls
        self._channels = [grpc.insecure_channel(f"127.0.0.1:{server.port}", own) for _ in range(n_channels)]
        stubs = [TransformerDebuggerServiceStub(channel) for channel in self._channels]
        request = heavy_request()
        request.priority = priority  # type: ignore[assignment]
        self.streams = [stubs[i % n_channels].StreamDebug(request, timeout=600) for i in range(n_calls)]
        self.errors: list[grpc.RpcError] = []
        self.n_done = 0
        self._threads = [threading.Thread(target=self._read, args=(one,)) for one in self.streams]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: grpc.Call) -> None:
        try:
            for _ in stream:
                pass
            self.n_done += 1
        except grpc.RpcError as error:
            self.errors.append(error)

    def ends(self) -> None:
        for stream in self.streams:
            stream.cancel()
        for thread in self._threads:
            thread.join()
        for channel in self._channels:
            channel.close()


StartCrowd = Callable[..., Crowd]


@pytest.fixture
def start_crowd(watched_alone) -> Iterator[StartCrowd]:
    """Starts crowds, which leave after the test."""
    started: list[Crowd] = []

    def start_one(n_calls: int, **options: int) -> Crowd:
        started.append(Crowd(watched_alone, n_calls, **options))
        return started[-1]

    yield start_one
    for one in started:
        one.ends()
    wait_until(lambda: reading(watched_alone, "tdb_queue_length") == 0, 60)
    (worker,) = watched_alone.worker_pids()
    seconds_until_idle(worker, 60)


@pytest.mark.parametrize("priority", [0, PRIORITY_SWEEP])
def test_a_light_call_is_next_after_the_heavy_one_that_runs(watched_alone, start_crowd, priority):
    with held_worker(watched_alone):
        crowd = start_crowd(N_HEAVY, one_connection=False, priority=priority)
        wait_until(lambda: reading(watched_alone, "tdb_queue_length") == N_HEAVY - 1, 60)
        light = watched_alone.debugger.Debug.future(debug_request(), timeout=300)
        wait_until(lambda: reading(watched_alone, "tdb_queue_length") == N_HEAVY, 60)
    assert light.result().sub_responses
    assert crowd.n_done <= 1


def test_one_connection_cannot_fill_the_queue(watched_alone, start_crowd):
    displaced = reading(watched_alone, "tdb_queue_displaced_total")
    with held_worker(watched_alone):
        crowd = start_crowd(1 + QUEUE_LENGTH, one_connection=True)
        wait_until(lambda: reading(watched_alone, "tdb_queue_length") == QUEUE_LENGTH, 60)
        light = watched_alone.debugger.Debug.future(debug_request(), timeout=300)
        wait_until(lambda: len(crowd.errors) == 1, 60)
    assert light.result().sub_responses
    gave_up = refused(crowd.errors[0])
    assert (gave_up.code, gave_up.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert gave_up.retry_seconds == 1.0
    assert reading(watched_alone, "tdb_queue_displaced_total") == displaced + 1

from __future__ import annotations

from collections.abc import Callable

import pytest
from tdb_server.service.telemetry.call_record import CallRecord
from tdb_server.service.telemetry.load_meter import DECAY_SECONDS, LoadMeter
from tdb_server.workers.measures import BatchMeasure, Readings

METHOD = "transformer_debugger.v1.TransformerDebuggerService/Debug"


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def readings(queue_length: int, workers_ready: Callable[[], int]) -> Readings:
    return Readings(lambda: queue_length, lambda: 1, lambda: 0, workers_ready, lambda: 0)


def meter(clock: Clock, n_workers: int = 1, front: Clock | None = None) -> LoadMeter:
    return LoadMeter(readings(3, lambda: n_workers), clock, front or Clock())


def run(
    load: LoadMeter, clock: Clock, *, seconds: float, worker_seconds: float, n_calls: int, status: str = "OK"
) -> None:
    """Calls that take `seconds`, one after the other; `worker_seconds` of each are a worker's."""
    for _ in range(n_calls):
        load.call_started(CallRecord(METHOD))
        clock.seconds += seconds
        if worker_seconds:
            load.batch_ended(BatchMeasure("cpu", 1, 1, worker_seconds))
        load.call_finished(finished(status=status))


def finished(method: str = METHOD, status: str = "OK") -> CallRecord:
    return CallRecord(method, status=status)


@pytest.mark.parametrize("batch_seconds", [0.05, 2.0, 15.0])
def test_a_worker_that_never_rests_is_fully_used(batch_seconds: float) -> None:
    clock = Clock()
    load = meter(clock)
    for _ in range(int(100 / batch_seconds)):
        clock.seconds += batch_seconds
        load.batch_ended(BatchMeasure("cpu", 1, 1, batch_seconds))
    assert load.load().utilization == pytest.approx(1.0, abs=1e-3)


def test_utilization_is_the_share_of_all_workers() -> None:
    clock = Clock()
    load = meter(clock, n_workers=4)
    for _ in range(1000):
        clock.seconds += 0.1
        load.batch_ended(BatchMeasure("cpu", 1, 1, 0.05))
    assert load.load().utilization == pytest.approx(0.125, rel=0.02)


def test_rates_count_our_calls_alone() -> None:
    clock = Clock()
    load = meter(clock)
    for index in range(1000):
        clock.seconds += 0.1
        load.call_finished(finished(status="OK" if index % 5 else "UNAVAILABLE"))
        load.call_finished(finished("grpc.health.v1.Health/Check"))
    found = load.load()
    assert found.calls_per_second == pytest.approx(10.0, rel=0.02)
    assert found.failures_per_second == pytest.approx(2.0, rel=0.05)
    assert found.queue_length == 3


def test_what_was_long_ago_is_forgotten() -> None:
    clock = Clock()
    load = meter(clock)
    load.batch_ended(BatchMeasure("cpu", 1, 1, 5.0))
    load.call_finished(finished())
    clock.seconds += 20 * DECAY_SECONDS
    assert load.load().utilization == pytest.approx(0.0, abs=1e-6)
    assert load.load().calls_per_second == pytest.approx(0.0, abs=1e-6)


def test_a_server_without_workers_has_a_load_too() -> None:
    assert meter(Clock(), n_workers=0).load().utilization == 0.0


def capacity(load: LoadMeter) -> float:
    found = load.load().capacity
    assert found is not None
    return found


@pytest.mark.parametrize("call_seconds", [0.001, 0.05, 2.0, 60.0])
@pytest.mark.parametrize("idle_share", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("n_workers", [1, 2, 16])
def test_capacity_follows_from_workers_and_calls_not_from_how_much_there_is_to_do(
    call_seconds: float, idle_share: float, n_workers: int
) -> None:
    clock = Clock()
    load = meter(clock, n_workers)
    run(load, clock, seconds=call_seconds / (1 - idle_share), worker_seconds=call_seconds, n_calls=200)
    assert capacity(load) == pytest.approx(n_workers / call_seconds, rel=0.01)
    clock.seconds += 10 * DECAY_SECONDS  # a pause says nothing about it
    assert capacity(load) == pytest.approx(n_workers / call_seconds, rel=0.01)


def test_a_lost_worker_shows_at_once() -> None:
    clock, n_ready = Clock(), [2]
    load = LoadMeter(readings(0, lambda: n_ready[0]), clock, Clock())
    run(load, clock, seconds=1.0, worker_seconds=0.5, n_calls=20)
    before = capacity(load)
    n_ready[0] = 1
    assert capacity(load) == pytest.approx(before / 2)


def test_where_the_front_has_more_to_do_than_its_workers_it_sets_the_limit() -> None:
    clock, front = Clock(), Clock()
    load = meter(clock, n_workers=8, front=front)
    for _ in range(1000):
        load.call_started(CallRecord(METHOD))
        clock.seconds += 0.04
        front.seconds += 0.02
        load.batch_ended(BatchMeasure("cpu", 1, 1, 0.04))
        load.call_finished(finished())
        front.seconds += 5.0  # nobody's call
    assert load.load().utilization == pytest.approx(0.5, rel=0.03)
    assert capacity(load) == pytest.approx(50.0, rel=0.01)


def test_requests_that_make_no_sense_do_not_change_what_a_server_can_do() -> None:
    clock = Clock()
    load = meter(clock)
    for _ in range(200):
        run(load, clock, seconds=0.1, worker_seconds=0.05, n_calls=1)
        run(load, clock, seconds=0.0, worker_seconds=0.0, n_calls=3, status="INVALID_ARGUMENT")
    assert capacity(load) == pytest.approx(20.0, rel=0.02)


def test_a_server_that_answers_nothing_can_do_nothing() -> None:
    clock = Clock()
    load = meter(clock)
    assert load.load().capacity is None
    run(load, clock, seconds=0.1, worker_seconds=0.05, n_calls=100)
    before = capacity(load)
    run(load, clock, seconds=0.1, worker_seconds=0.05, n_calls=1000, status="INTERNAL")
    assert capacity(load) < before / 100


def test_calls_over_http_count_and_pages_do_not() -> None:
    clock = Clock()
    load = meter(clock)
    for _ in range(200):
        asked, page = (CallRecord(method, is_http=True) for method in ("POST /batched_tdb", "GET /"))
        load.call_started(asked)
        asked.submitted_seconds = asked.elapsed_seconds
        clock.seconds += 0.1
        load.batch_ended(BatchMeasure("cpu", 1, 1, 0.1))
        load.call_finished(asked)
        load.call_started(page)
        load.call_finished(page)
    assert load.load().calls_per_second == pytest.approx(10.0, rel=0.2)
    assert capacity(load) == pytest.approx(10.0, rel=0.01)

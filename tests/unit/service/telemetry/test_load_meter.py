from __future__ import annotations

import pytest
from tdb_server.service.telemetry.call_record import CallRecord
from tdb_server.service.telemetry.load_meter import MEMORY_SECONDS, LoadMeter
from tdb_server.workers.measures import BatchMeasure, Readings

METHOD = "transformer_debugger.v1.TransformerDebuggerService/Debug"


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def meter(clock: Clock, n_workers: int = 1) -> LoadMeter:
    return LoadMeter(Readings(lambda: 3, lambda: n_workers, lambda: 0), clock)


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
    clock.seconds += 20 * MEMORY_SECONDS
    assert load.load().utilization == pytest.approx(0.0, abs=1e-6)
    assert load.load().calls_per_second == pytest.approx(0.0, abs=1e-6)


def test_a_server_without_workers_has_a_load_too() -> None:
    assert meter(Clock(), n_workers=0).load().utilization == 0.0

"""How loaded this server is, as a balancer wants to know it: recent seconds count most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from tdb_server.service.telemetry.call_record import CallRecord
from tdb_server.workers.measures import BatchMeasure, Readings

DECAY_SECONDS = 10.0
"""What happened this long ago counts 1/e of what happens now."""

OUR_METHODS = "transformer_debugger."


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one server.

    Attributes:
        utilization: share of the workers' time that was spent on batches, or of one core's time that the
            front took for calls, whichever is more; 0 to 1.
        calls_per_second: calls of our own services that ended, and of the JSON API, where a worker was asked.
        failures_per_second: those of them that ended otherwise than OK.
        queue_length: calls that wait for a worker.
        capacity: calls per second, of the kind and mix of late, that would be answered OK if the server were
            fully used; None where there were none to tell by.
    """

    utilization: float
    calls_per_second: float
    failures_per_second: float
    queue_length: int
    capacity: float | None


class LoadMeter:
    """Measures the load. A `CallListener` that hears of batches too; all on the event loop.

    Args:
        readings: the state of queue and workers.
        clock: seconds that never go back.
        front_clock: processor time of this process, in seconds. One interpreter's threads share one core.
    """

    def __init__(
        self,
        readings: Readings,
        clock: Callable[[], float] = time.monotonic,
        front_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._readings = readings
        self._front_clock = front_clock
        self._front_read_at = 0.0
        self._n_open = 0
        self._busy = _Decaying(clock)
        self._worked = _Decaying(clock)
        self._front_worked = _Decaying(clock)
        self._answered = _Decaying(clock)
        self._failed = _Decaying(clock)

    def call_started(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if _is_ours(record):
            if not self._n_open:
                self._front_read_at = self._front_clock()
            self._n_open += 1

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if _is_ours(record):
            self._n_open -= 1
            if not record.is_http or record.submitted_seconds is not None:  # over HTTP pages are read, too
                ended = self._answered if record.status == "OK" else self._failed
                ended.add(1 / DECAY_SECONDS)
            before, self._front_read_at = self._front_read_at, self._front_clock()
            self._front_worked.add((self._front_read_at - before) / DECAY_SECONDS)

    def batch_ended(self, batch: BatchMeasure) -> None:
        """A worker was busy until now."""
        self._busy.add(1 - math.exp(-batch.seconds / DECAY_SECONDS))
        self._worked.add(batch.seconds / DECAY_SECONDS)

    def load(self) -> Load:
        """What it is now."""
        n_workers = max(1, self._readings.workers_ready())
        answered, failed, front = self._answered.now(), self._failed.now(), self._front_worked.now()
        # Calls, batches and the front's work are all counted at their end, and fade alike. So the quotient
        # holds for calls of any length, and after a pause.
        used = max(self._worked.now() / n_workers, front)
        return Load(
            min(1.0, max(self._busy.now() / n_workers, front)),
            answered + failed,
            failed,
            self._readings.queue_length(),
            answered / used if answered > 0 and used > 0 else None,
        )


def _is_ours(record: CallRecord) -> bool:
    return record.is_http or record.method.startswith(OUR_METHODS)


class _Decaying:
    """A number that fades as time goes by, unless something is added."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._value, self._changed_at = 0.0, clock()

    def add(self, amount: float) -> None:
        self._value, self._changed_at = self.now() + amount, self._clock()

    def now(self) -> float:
        return self._value * math.exp((self._changed_at - self._clock()) / DECAY_SECONDS)

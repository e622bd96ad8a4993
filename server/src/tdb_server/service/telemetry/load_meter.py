"""How loaded this server is, as a balancer wants to know it: recent seconds count most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from tdb_server.service.telemetry.call_record import CallRecord
from tdb_server.workers.measures import BatchMeasure, Readings

MEMORY_SECONDS = 10.0
"""What happened this long ago counts 1/e of what happens now."""

OUR_METHODS = "transformer_debugger."


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one server.

    Attributes:
        utilization: share of the workers' time that was spent on batches; 0 to 1.
        calls_per_second: calls of our own services that ended.
        failures_per_second: those of them that ended otherwise than OK.
        queue_length: calls that wait for a worker.
    """

    utilization: float
    calls_per_second: float
    failures_per_second: float
    queue_length: int


class LoadMeter:
    """Keeps count. A `CallListener`, told about batches too; all on the event loop.

    Args:
        readings: the state of queue and workers.
        clock: seconds that never go back.
    """

    def __init__(self, readings: Readings, clock: Callable[[], float] = time.monotonic) -> None:
        self._readings = readings
        self._busy = _Decaying(clock)
        self._ended = _Decaying(clock)
        self._failed = _Decaying(clock)

    def call_started(self, record: CallRecord) -> None:
        """See `CallListener`."""

    def call_finished(self, record: CallRecord) -> None:
        """See `CallListener`."""
        if record.method.startswith(OUR_METHODS):
            self._ended.add(1 / MEMORY_SECONDS)
            if record.status != "OK":
                self._failed.add(1 / MEMORY_SECONDS)

    def batch_ended(self, batch: BatchMeasure) -> None:
        """A worker was busy until now."""
        self._busy.add(1 - math.exp(-batch.seconds / MEMORY_SECONDS))

    def load(self) -> Load:
        """What it is now."""
        return Load(
            min(1.0, self._busy.now() / max(1, self._readings.workers_ready())),
            self._ended.now(),
            self._failed.now(),
            self._readings.queue_length(),
        )


class _Decaying:
    """A number that fades as time goes by, unless something is added."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._value, self._changed_at = 0.0, clock()

    def add(self, amount: float) -> None:
        self._value, self._changed_at = self.now() + amount, self._clock()

    def now(self) -> float:
        return self._value * math.exp((self._changed_at - self._clock()) / MEMORY_SECONDS)

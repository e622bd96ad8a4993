"""Measurements of the queue and the workers, for metrics and load reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BatchMeasure:
    """One batch that a worker is done with.

    Attributes:
        device: where it ran, as torch names it.
        n_calls: calls that shared it.
        n_sub_requests: rows of it.
        seconds: from its leaving for the worker to the worker's word that it is done, or to its death.
        caller_seconds: the seconds shared out among callers with tokens, by name; "" for all others together.
    """

    device: str
    n_calls: int
    n_sub_requests: int
    seconds: float
    caller_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """What can be read at any time, from any thread.

    Attributes:
        queue_length: calls that wait for a worker.
        callers_waiting: callers that have a call waiting.
        calls_displaced: calls that gave up their place in the full queue to others.
        workers_ready: workers that can compute.
        worker_restarts: workers started in place of dead ones.
        log_lines_dropped: lines of the log that could not be written.
    """

    queue_length: Callable[[], int]
    callers_waiting: Callable[[], int]
    calls_displaced: Callable[[], int]
    workers_ready: Callable[[], int]
    worker_restarts: Callable[[], int]
    log_lines_dropped: Callable[[], int] = lambda: 0


OnBatch = Callable[[BatchMeasure], None]


def measure_nothing(_: BatchMeasure) -> None:
    """Ignores a batch."""

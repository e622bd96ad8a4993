"""What the workers' side tells whoever measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchMeasure:
    """One batch that a worker is done with.

    Attributes:
        device: where it ran, as torch names it.
        n_calls: calls that shared it.
        n_sub_requests: rows of it.
        seconds: from its leaving for the worker to the worker's word that it is done.
    """

    device: str
    n_calls: int
    n_sub_requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Readings:
    """What can be read at any time, from any thread.

    Attributes:
        queue_length: calls that wait for a worker.
        workers_ready: workers that can compute.
        worker_restarts: workers started in place of dead ones.
        log_lines_dropped: lines of the log that could not be written.
    """

    queue_length: Callable[[], int]
    workers_ready: Callable[[], int]
    worker_restarts: Callable[[], int]
    log_lines_dropped: Callable[[], int] = lambda: 0


OnBatch = Callable[[BatchMeasure], None]


def measure_nothing(_: BatchMeasure) -> None:
    """For when nobody measures."""

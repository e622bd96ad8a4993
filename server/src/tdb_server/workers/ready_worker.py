"""A ready worker as the scheduler sees it: what it is at, and how busy it has been."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tdb_server.workers.device_time import Pace
from tdb_server.workers.messages import RunBatch
from tdb_server.workers.pool import Worker
from tdb_server.workers.ticket import Ticket


@dataclass(eq=False)
class ReadyWorker:
    """One worker and its current batch.

    Attributes:
        worker: who computes.
        tickets: the calls of the batch, by id; empty between batches.
        busy_seconds: spent on batches so far.
        pace: how fast it works.
        n_expected: calls that are likely to wait here soon. Callers tend to come back as soon as they have
            their answer, so it is this worker's share of the most there were during its last batch.
        watch: goes off when the current batch should have ended long ago; None while somebody waits for it.
    """

    worker: Worker
    tickets: dict[str, Ticket] = field(default_factory=dict)
    busy_seconds: float = 0.0
    n_expected: int = 0
    pace: Pace = field(default_factory=Pace)
    watch: asyncio.TimerHandle | None = None
    _most_active: int = 0
    _batch_id: int | None = None
    _changed_at: float = field(default_factory=time.monotonic)

    @property
    def is_free(self) -> bool:
        """Between batches."""
        return self._batch_id is None

    def start(self, batch_id: int, batch: Sequence[Ticket]) -> None:
        """Hands the worker a batch."""
        self._batch_id = batch_id
        self._changed_at = time.monotonic()
        self.tickets = {ticket.call.call_id: ticket for ticket in batch}
        for ticket in batch:
            ticket.take_up()
        self.worker.send(RunBatch(batch_id, tuple(ticket.call for ticket in batch)))

    @property
    def n_active(self) -> int:
        """Calls of the batch that are not done."""
        return sum(not ticket.is_over for ticket in self.tickets.values())

    def saw(self, n_active: int) -> None:
        """Notes how many calls wait and run on all workers together."""
        self._most_active = max(self._most_active, n_active)

    def end(self, batch_id: int, n_workers: int) -> list[Ticket]:
        """Notes that a batch has ended.

        Returns:
            The calls of the batch; none when it is not the current one.
        """
        if batch_id != self._batch_id:
            return []
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None
        now = time.monotonic()
        tickets = list(self.tickets.values())
        self.busy_seconds += now - self._changed_at
        self.n_expected, self._most_active = math.ceil(self._most_active / n_workers), 0
        self._batch_id, self._changed_at, self.tickets = None, now, {}
        return tickets

    @property
    def seconds_so_far(self) -> float:
        """Since the batch began, or since the last one ended."""
        return time.monotonic() - self._changed_at

    def waits_until(self, n_queued: int, max_wait_seconds: float) -> float:
        """When to start the next batch, in monotonic seconds: at once unless more calls are expected."""
        if n_queued >= self.n_expected:
            return 0.0
        return self._changed_at + max_wait_seconds

"""A call on its way through the scheduler: from the queue to a worker and back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from tdb_server.domain.call import Call
from tdb_server.domain.cost import Cost
from tdb_server.domain.results import CallEvent, Finished
from tdb_server.workers.event_buffer import EventBuffer


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A worker has begun with the call, which waited this long."""

    queue_seconds: float


Event = TakenUp | CallEvent


@dataclass(eq=False)
class Ticket:
    """One accepted call.

    Attributes:
        call: what to run.
        cost: its estimate.
        buffer: what its reader has not taken yet.
        accepted_at: monotonic seconds.
        queue_seconds: how long it has waited, once it is taken up.
        is_over: its last event or its failure is in the buffer, or nobody wants it.
    """

    call: Call
    cost: Cost
    buffer: EventBuffer[Event]
    accepted_at: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    is_over: bool = False

    def take_up(self) -> None:
        """A worker begins."""
        self.queue_seconds = time.monotonic() - self.accepted_at
        self.buffer.put(TakenUp(self.queue_seconds), n_bytes=0)

    def add(self, event: CallEvent, n_bytes: int) -> None:
        """A worker has something."""
        if self.is_over:
            return
        if isinstance(event, Finished):
            self.is_over = True
            event = replace(event, seconds=replace(event.seconds, queue=self.queue_seconds))
        self.buffer.put(event, n_bytes)

    def fail(self, failure: Exception) -> None:
        """Nothing more will come."""
        if not self.is_over:
            self.is_over = True
            self.buffer.fail(failure)

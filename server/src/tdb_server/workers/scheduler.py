"""Who runs what, when: the queue between the callers and the workers."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from tdb_server.domain.call import Call
from tdb_server.domain.cost import Cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.results import Finished
from tdb_server.errors import OverLimit, Unavailable
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.messages import BatchEnded, CallProgress, CancelCall, OutOfMemory, RunBatch
from tdb_server.workers.pool import Worker
from tdb_server.workers.ticket import Event, Ticket

BUFFER_CHUNKS = 4
RETRY_SECONDS = 1.0


@dataclass(eq=False)
class _Station:
    """A ready worker and what it is at."""

    worker: Worker
    batch_id: int | None = None
    tickets: dict[str, Ticket] = field(default_factory=dict)


class Scheduler:
    """Takes calls in order and gives each to a worker that is free. Lives on the event loop.

    Args:
        limits: how many calls may run and wait, and how much one may cost.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[Ticket] = deque()
        self._stations: dict[Worker, _Station] = {}
        self._n_open = 0
        self._n_batches = 0

    async def submit(self, call: Call, cost: Cost) -> AsyncGenerator[Event]:
        """Runs a call. Closing the generator cancels it.

        Yields:
            `TakenUp`, then events as they are ready, last a `Finished`.

        Raises:
            OverLimit: too many calls, or too large a call.
            Unavailable: no worker is ready, or the worker died.
            Internal: a fault of the worker.
        """
        ticket = self._admit(call, cost)
        self._n_open += 1
        try:
            self._queue.append(ticket)
            self._dispatch()
            while True:
                event = await ticket.buffer.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._n_open -= 1
            self._drop(ticket)

    def worker_is_ready(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        self._stations[worker] = _Station(worker)
        self._dispatch()

    def worker_said(self, worker: Worker, message: CallProgress | BatchEnded, n_bytes: int) -> None:
        """See `PoolObserver`."""
        station = self._stations[worker]
        if isinstance(message, CallProgress):
            ticket = station.tickets.get(message.call_id)
            if ticket is not None:
                ticket.add(message.event, n_bytes)
        elif message.batch_id == station.batch_id:
            tickets, station.tickets, station.batch_id = station.tickets, {}, None
            failure = message.failure
            if isinstance(failure, OutOfMemory):
                failure = OverLimit(
                    "the worker's device has too little memory for this call", "OUT_OF_MEMORY"
                )
            for ticket in tickets.values():
                ticket.fail(failure or Unavailable("the worker left the call unfinished", "WORKER_DIED"))
            self._dispatch()

    def worker_is_gone(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        for ticket in self._stations.pop(worker).tickets.values():
            ticket.fail(Unavailable("the worker died while it ran the call", "WORKER_DIED", RETRY_SECONDS))

    def _admit(self, call: Call, cost: Cost) -> Ticket:
        if cost.activation_bytes > self._limits.max_activation_bytes:
            raise OverLimit(
                f"the call would take about {cost.activation_bytes} bytes of activations, more than the "
                f"{self._limits.max_activation_bytes} allowed; send fewer sub-requests or shorter prompts",
                "COST_TOO_HIGH",
            )
        if not self._stations:
            raise Unavailable("no worker is ready", "NO_WORKER_READY", RETRY_SECONDS)
        if self._n_open >= self._limits.max_concurrent_calls:
            raise OverLimit("too many calls at the same time", "TOO_MANY_CONCURRENT_CALLS", RETRY_SECONDS)
        if len(self._queue) >= self._limits.max_queue_length:
            raise OverLimit("too many calls wait for a worker", "QUEUE_FULL", RETRY_SECONDS)
        return Ticket(call, cost, EventBuffer(BUFFER_CHUNKS * self._limits.chunk_bytes))

    def _dispatch(self) -> None:
        for station in self._stations.values():
            if station.batch_id is None and self._queue:
                ticket = self._queue.popleft()
                self._n_batches += 1
                station.batch_id = self._n_batches
                station.tickets = {ticket.call.call_id: ticket}
                ticket.take_up()
                station.worker.send(RunBatch(self._n_batches, (ticket.call,)))

    def _drop(self, ticket: Ticket) -> None:
        """The caller has gone, with all it wanted or without."""
        if ticket in self._queue:
            self._queue.remove(ticket)
        if not ticket.is_over:
            ticket.is_over = True
            for station in self._stations.values():
                if ticket.call.call_id in station.tickets:
                    station.worker.send(CancelCall(ticket.call.call_id))
        ticket.buffer.clear()

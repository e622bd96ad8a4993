"""Callers and workers in a time of their own, around the queue that the server uses."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.priority import Priority
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.device_time import Pace
from tdb_server.workers.fair_queue import FairQueue
from tdb_server.workers.ticket import Terms, Ticket

from tests.unit.workers.conftest import make_buffer, make_call

BYTES_PER_SECOND = 10**9


@dataclass(eq=False)
class Client:
    """Asks again as soon as it has its answer, or a while later.

    Attributes:
        caller: who it is.
        seconds: that each of its calls takes by itself.
        n_at_once: calls that it always has open.
        pause: from an answer to the next call.
        priority: of its calls.
        wrong_by: what its calls take for each second of the estimate.
        latencies: of its calls.
        busy: seconds that devices have spent on it.
    """

    caller: Caller
    seconds: float
    n_at_once: int = 1
    pause: float = 0.0
    priority: Priority = Priority.INTERACTIVE
    wrong_by: float = 1.0
    latencies: list[float] = field(default_factory=list)
    busy: float = 0.0


class SharedDevices:
    """Workers that serve clients.

    Args:
        clients: who asks, from the beginning on.
        n_workers: who computes.
        max_seconds: of a batch of several calls.
    """

    def __init__(self, clients: list[Client], n_workers: int = 1, max_seconds: float = 2.0) -> None:
        rule = BatchRule(10**9, 10**18, max_wait_seconds=0, max_seconds=max_seconds)
        self.queue, self.pace, self.now = FairQueue(rule), Pace(), 0.0
        self.batches: list[list[Client]] = []
        self.busy: defaultdict[str, float] = defaultdict(float)
        self._n_free = n_workers
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._owners: dict[Ticket, tuple[Client, float]] = {}
        for client in clients:
            self.joins(client)

    def joins(self, client: Client, at: float = 0.0) -> None:
        """A client begins at some time."""
        for _ in range(client.n_at_once):
            self._at(at, lambda: self._asks(client))

    def run(self, seconds: float) -> None:
        """Lets time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
            if not self._events or self._events[0][0] > self.now:
                self._dispatch()
        self.now = end

    def _at(self, moment: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), happens))

    def _asks(self, client: Client) -> None:
        cost = Cost(int(client.seconds / client.wrong_by * BYTES_PER_SECOND), 0, 0)
        terms = Terms(client.caller, priority=client.priority)
        ticket = Ticket(make_call(), cost, terms, make_buffer())
        self._owners[ticket] = client, self.now
        self.queue.put(ticket)

    def _dispatch(self) -> None:
        while self._n_free and len(self.queue):
            share = math.ceil(len(self.queue) / self._n_free)
            batch = self.queue.take_batch(share, self.pace)
            seconds = sum(self._owners[ticket][0].seconds for ticket in batch)
            self.batches.append([self._owners[ticket][0] for ticket in batch])
            self._n_free -= 1
            self._at(self.now + seconds, lambda batch=batch, seconds=seconds: self._ended(batch, seconds))

    def _ended(self, batch: list[Ticket], seconds: float) -> None:
        self._n_free += 1
        work = sum(ticket.work for ticket in batch)
        self.pace.saw(work, seconds)
        for ticket in batch:
            client, asked_at = self._owners.pop(ticket)
            self.queue.settle(ticket, seconds * ticket.work / work)
            client.latencies.append(self.now - asked_at)
            client.busy += client.seconds
            self.busy[client.caller.name] += client.seconds
            self._at(self.now + client.pause, lambda client=client: self._asks(client))

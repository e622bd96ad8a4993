"""Who runs what, when: the queue between the callers and the workers.

A call is admitted or refused at once. It waits until a worker is free, and runs in a batch with others that
wait. When that goes wrong it is run again, in smaller company, for as long as nothing of it has left for its
reader: results follow from the weights and the request alone, so nobody can tell.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.priority import Priority
from tdb_server.domain.results import Finished
from tdb_server.errors import Internal, OverLimit, TdbError, Unavailable
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.device_time import Pace
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.fair_queue import FairQueue
from tdb_server.workers.measures import BatchMeasure, OnBatch, measure_nothing
from tdb_server.workers.messages import BatchEnded, CallProgress, OutOfMemory
from tdb_server.workers.pool import Worker
from tdb_server.workers.result_cache import ResultCache
from tdb_server.workers.station import Station
from tdb_server.workers.ticket import NO_COMPANY, Event, TakenUp, Terms, Ticket

_log = logging.getLogger(__name__)
BUFFER_CHUNKS = 2
RETRY_SECONDS = 1.0
MAX_DEATHS = 3
HANG_SECONDS = 30.0
"""How long a worker may go on with a batch that nobody wants any more."""


class Scheduler:
    """Lives on the event loop; the pool tells it about workers, see `PoolObserver`.

    Args:
        limits: how many calls may run and wait, and how much one may cost.
        rule: which calls share a batch.
        max_calls_per_caller: that run and wait at the same time.
        cache: results of earlier calls.
        on_batch: told about each batch that a worker is done with.

    Attributes:
        n_displaced: calls that have given up their place in the queue to others so far.
    """

    def __init__(
        self,
        limits: Limits,
        rule: BatchRule,
        max_calls_per_caller: int,
        cache: ResultCache,
        on_batch: OnBatch = measure_nothing,
    ) -> None:
        self._on_batch = on_batch
        self._limits = limits
        self._rule = rule
        self._max_calls_per_caller = max_calls_per_caller
        self._cache = cache
        self._queue = FairQueue(rule)
        self._pace = Pace()
        self.n_displaced = 0
        self._stations: dict[Worker, Station] = {}
        self._open_calls: Counter[str] = Counter()
        self._n_batches = 0
        self._wake_up: asyncio.TimerHandle | None = None

    @property
    def n_callers_waiting(self) -> int:
        """Callers that have a call waiting for a worker."""
        return self._queue.n_callers

    @property
    def n_waiting(self) -> int:
        """Calls that wait for a worker."""
        return len(self._queue)

    async def submit(self, call: Call, cost: Cost, terms: Terms) -> AsyncGenerator[Event]:
        """Runs a call. Closing the generator cancels it.

        Yields:
            `TakenUp`, then events as they are ready, last a `Finished`.

        Raises:
            OverLimit: too many calls, or too large a call.
            Unavailable: no worker is ready, or the worker died and something of the call had left already.
            Internal: a fault of the worker.
        """
        self._check_cost(cost, terms.caller)
        known = self._cache.get(terms.cache_key)
        if known is not None:
            with self._open_call(terms.caller):
                yield TakenUp(0.0, is_cached=True)
                for one in known:
                    yield one
            return
        self._make_room(terms.caller, terms.priority)
        recording = self._cache.recording(terms.cache_key)
        buffer: EventBuffer[Event] = EventBuffer(BUFFER_CHUNKS * self._limits.chunk_bytes)
        ticket = Ticket(call, cost, terms, buffer, recording)
        with self._open_call(terms.caller):
            try:
                self._queue.put(ticket)
                self._dispatch()
                self._count_active()
                while not isinstance(event := await ticket.next_event(), Finished):
                    yield event
                if recording is not None:
                    self._cache.keep(recording)
                yield event
            finally:
                if recording is not None:
                    recording.give_up()
                self._drop(ticket)

    def check_room(self, caller: Caller, priority: Priority) -> Ticket | None:
        """Refuses a call for which there is no room, before any work is put into it.

        Returns:
            The call that would have to go; None where there is room.

        Raises:
            OverLimit: too many calls run and wait, and the caller has no claim to the place of another.
            Unavailable: no worker is ready.
        """
        if not self._stations:
            raise Unavailable("no worker is ready", "NO_WORKER_READY", RETRY_SECONDS)
        return self._displaced(caller, priority)

    def _make_room(self, caller: Caller, priority: Priority) -> None:
        """As `check_room`; the call that has to go is refused in place of the new one."""
        displaced = self.check_room(caller, priority)
        if displaced is not None:
            self._queue.remove(displaced)
            self.n_displaced += 1
            message = "others hold fewer places in the full queue, and this call has given up its own"
            displaced.fail(OverLimit(message, "QUEUE_FULL", RETRY_SECONDS))

    def _displaced(self, caller: Caller, priority: Priority) -> Ticket | None:
        """The call that has to go if a new one comes; None where there is room.

        Raises:
            OverLimit: there is no room, and the new one has no claim to another's.
        """
        n_own, own_limit = self._open_calls[caller.name], self._own_limit(caller)
        is_queue_full = len(self._queue) >= self._limits.max_queue_length
        if n_own < own_limit and not is_queue_full and not self._has_too_many_calls:
            return None
        displaced = self._queue.displaced_by(caller, priority, among_own=n_own >= own_limit)
        if displaced is not None:
            return displaced
        if is_queue_full:
            raise OverLimit("too many calls wait for a worker", "QUEUE_FULL", RETRY_SECONDS)
        message = f"more than {own_limit} calls of {caller.name} at the same time"
        if n_own < own_limit:
            message = "too many calls at the same time"
        raise OverLimit(message, "TOO_MANY_CONCURRENT_CALLS", RETRY_SECONDS)

    @property
    def _has_too_many_calls(self) -> bool:
        return self._open_calls.total() >= self._limits.max_concurrent_calls

    def _own_limit(self, caller: Caller) -> int:
        own_limit = caller.limits.max_concurrent_calls
        return self._max_calls_per_caller if own_limit is None else own_limit

    @contextmanager
    def _open_call(self, caller: Caller) -> Iterator[None]:
        """Around a call that counts."""
        self._open_calls[caller.name] += 1
        try:
            yield
        finally:
            self._open_calls[caller.name] -= 1
            if not self._open_calls[caller.name]:
                del self._open_calls[caller.name]

    def worker_is_ready(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        self._stations[worker] = Station(worker)
        self._dispatch()

    def worker_said(self, worker: Worker, message: CallProgress | BatchEnded, n_bytes: int) -> None:
        """See `PoolObserver`."""
        station = self._stations[worker]
        if isinstance(message, CallProgress):
            if ticket := station.tickets.get(message.call_id):
                ticket.add(message.event, n_bytes)
            return
        busy_before = station.busy_seconds
        batch = station.end(message.batch_id, n_stations=len(self._stations))
        if batch:
            self._settle(station, batch, station.busy_seconds - busy_before, is_whole=message.failure is None)
        unfinished = [ticket for ticket in batch if not ticket.is_over]
        for ticket in unfinished:
            self._after_failure(ticket, message.failure, n_company=len(batch))
        self._dispatch()

    def worker_is_gone(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        station = self._stations.pop(worker)
        if station.tickets:
            self._settle(station, [*station.tickets.values()], station.seconds_so_far, is_whole=False)
        for ticket in station.tickets.values():
            if not ticket.is_over:
                self._after_death(ticket)
        self._dispatch()

    def _settle(self, station: Station, batch: list[Ticket], seconds: float, *, is_whole: bool) -> None:
        """The time that a batch has taken is shared out among its calls, and learned from."""
        work = sum(ticket.work for ticket in batch)
        shared_seconds = max(0.0, seconds - sum(ticket.own_seconds for ticket in batch))
        by_caller: defaultdict[str, float] = defaultdict(float)
        for ticket in batch:
            taken = ticket.own_seconds + shared_seconds * ticket.work / work
            self._queue.settle(ticket, taken)
            by_caller[ticket.terms.caller.name if ticket.terms.caller.has_token else ""] += taken
        if is_whole and not any(ticket.is_abandoned for ticket in batch):
            for pace in (station.pace, self._pace):
                pace.saw(work, seconds)
        n_rows = sum(ticket.n_rows for ticket in batch)
        self._on_batch(BatchMeasure(station.worker.device, len(batch), n_rows, seconds, by_caller))

    def _check_cost(self, cost: Cost, caller: Caller) -> None:
        own_limit = caller.limits.max_activation_bytes
        limit = min(self._limits.max_activation_bytes, own_limit or self._limits.max_activation_bytes)
        if cost.activation_bytes > limit:
            raise OverLimit(
                f"the call would take about {cost.activation_bytes} bytes of activations, more than the "
                f"{limit} allowed; send fewer sub-requests or shorter prompts",
                "COST_TOO_HIGH",
            )

    def _after_failure(self, ticket: Ticket, failure: TdbError | OutOfMemory | None, n_company: int) -> None:
        """Runs a call again: in half the company when memory was short, alone when it may be at fault."""
        can_run_again = n_company > NO_COMPANY and not ticket.has_left
        if isinstance(failure, OutOfMemory):
            if can_run_again:
                self._run_again(ticket, n_company // 2)
                return
            retry_seconds = RETRY_SECONDS if n_company > NO_COMPANY else None
            message = "the worker's device has too little memory for this call"
            ticket.fail(OverLimit(message, "OUT_OF_MEMORY", retry_seconds))
        elif can_run_again:
            self._run_again(ticket, NO_COMPANY)
        else:
            ticket.fail(failure or self._fault(ticket, "the worker left the call unfinished"))

    def _after_death(self, ticket: Ticket) -> None:
        ticket.n_deaths += 1
        if ticket.n_deaths >= MAX_DEATHS:
            ticket.fail(self._fault(ticket, f"{MAX_DEATHS} workers died on the call"))
        elif ticket.has_left:
            message = "the worker died while it ran the call, and part of the answer had left already"
            ticket.fail(Unavailable(message, "WORKER_DIED", RETRY_SECONDS))
        else:
            self._run_again(ticket, NO_COMPANY)

    def _run_again(self, ticket: Ticket, max_company: int) -> None:
        ticket.start_again(max_company)
        self._queue.put_back(ticket)

    def _fault(self, ticket: Ticket, what: str) -> Internal:
        error_id = uuid.uuid4().hex[:12]
        _log.error("internal error %s: %s; call %s", error_id, what, ticket.call.call_id)
        return Internal(error_id)

    def _dispatch(self) -> None:
        """Gives waiting calls to free workers, the one that has worked least first."""
        free = [station for station in self._stations.values() if station.is_free]
        free.sort(key=lambda station: station.busy_seconds)
        now = time.monotonic()
        for n_before, station in enumerate(free):
            if not self._queue:
                return
            share = math.ceil(len(self._queue) / (len(free) - n_before))
            starts_at = station.waits_until(share, self._rule.max_wait_seconds)
            if starts_at > now:
                self._dispatch_later(starts_at - now)
                continue
            self._n_batches += 1
            pace = station.pace if station.pace.is_known else self._pace
            station.start(self._n_batches, self._queue.take_batch(share, pace))
            self._count_active()

    def _count_active(self) -> None:
        n_active = len(self._queue) + sum(station.n_active for station in self._stations.values())
        for station in self._stations.values():
            station.saw(n_active)

    def _dispatch_later(self, seconds: float) -> None:
        if self._wake_up is None:
            self._wake_up = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._wake_up = None
        self._dispatch()

    def _drop(self, ticket: Ticket) -> None:
        """The reader has gone, with all it wanted or without."""
        was_over = ticket.is_over
        ticket.abandon()
        self._queue.remove(ticket)
        if was_over:
            return
        for station in self._stations.values():
            if station.tickets.get(ticket.call.call_id) is ticket:
                station.cancel(ticket)
                if not station.n_active:
                    asyncio.get_running_loop().call_later(HANG_SECONDS, self._kill_if_hung, station, ticket)

    def _kill_if_hung(self, station: Station, ticket: Ticket) -> None:
        """A worker that is still at a batch whose calls were all cancelled long ago does not listen."""
        if station.tickets.get(ticket.call.call_id) is ticket:
            _log.error("a worker does not stop when told to; it is replaced")
            station.worker.kill()

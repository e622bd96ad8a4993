"""Who runs what, when: the queue between the callers and the workers.

A call is admitted or refused at once. It waits until a worker is free, and runs in a batch with others that
wait. When that goes wrong it is run again, in a smaller batch, for as long as nothing of it has left for its
reader: results follow from the weights and the request alone, so nobody can tell.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tdb_server.domain.budget import Budget
from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.priority import Priority
from tdb_server.domain.results import Finished
from tdb_server.errors import Internal, OverLimit, TdbError, Unavailable
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.callbacks import guarded
from tdb_server.workers.device_time import Pace, device_work
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.fair_queue import FairQueue
from tdb_server.workers.measures import BatchMeasure, OnBatch, measure_nothing
from tdb_server.workers.messages import BatchEnded, CallProgress, CancelCall, OutOfMemory
from tdb_server.workers.pool import Worker
from tdb_server.workers.ready_worker import ReadyWorker
from tdb_server.workers.result_cache import ResultCache
from tdb_server.workers.ticket import ALONE, Event, TakenUp, Terms, Ticket

_log = logging.getLogger(__name__)
BUFFER_CHUNKS = 2
RETRY_SECONDS = 1.0
MAX_DEATHS = 3
HANG_SECONDS = 30.0
"""How long a worker may go on with a batch that nobody waits for any more."""


class Scheduler:
    """Lives on the event loop; the pool tells it about workers, see `PoolObserver`.

    Args:
        limits: how many calls may run and wait, and how much one may cost.
        rule: which calls share a batch.
        max_calls_per_caller: that run and wait at the same time.
        cache: results of earlier calls.
        on_batch: called with each batch that a worker is done with.

    Attributes:
        memory: for what waits for readers, or to be read.
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
        self.memory = Budget(limits.max_buffered_bytes, "requests and answers in memory", "BUFFERS_FULL")
        self._disk = Budget(limits.max_spool_bytes, "answers that wait on disk", "NO_ROOM_FOR_ANSWER")
        self._queue = FairQueue(rule)
        self._pace = Pace()
        self.n_displaced = 0
        self._ready: dict[Worker, ReadyWorker] = {}
        self._open_calls: Counter[str] = Counter()
        self._open_tickets: set[Ticket] = set()
        self._n_batches = 0
        self._wake_up: asyncio.TimerHandle | None = None

    def set_max_activation_bytes(self, max_activation_bytes: int) -> None:
        """Says how much a call, and a batch, may take: workers know when their model is loaded."""
        self._limits = replace(self._limits, max_activation_bytes=max_activation_bytes)
        self._rule.max_activation_bytes = max_activation_bytes

    @property
    def n_callers_waiting(self) -> int:
        """Callers that have a call waiting for a worker."""
        return self._queue.n_callers

    @property
    def n_waiting(self) -> int:
        """Calls that wait for a worker."""
        return len(self._queue)

    def likely_seconds(self, cost: Cost, n_rows: int) -> float | None:
        """How long a call would keep a worker busy, by what batches took; None while none was measured."""
        return self._pace.seconds(device_work(cost, n_rows)) if self._pace.is_known else None

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
            with self.open_call(terms.caller):
                yield TakenUp(0.0, is_cached=True)
                for one in known:
                    yield one
            return
        displaced = self.check_room(terms.caller, terms.priority)
        buffer = self._new_buffer(cost, terms.caller)
        if displaced is not None:
            self._displace(displaced)
        recording = self._cache.recording(terms.cache_key)
        ticket = Ticket(call, cost, terms, buffer, recording)
        with self.open_call(terms.caller):
            self._open_tickets.add(ticket)
            try:
                self._queue.put(ticket)
                self._dispatch()
                self._count_active()
                n_events = 0
                while not isinstance(event := await ticket.next_event(), Finished):
                    n_events += not isinstance(event, TakenUp)
                    yield event
                if event.n_events not in (None, n_events):
                    what = f"{n_events} of {event.n_events} results have come from the worker"
                    raise self._fault(ticket, what)
                if recording is not None:
                    self._cache.keep(recording)
                yield event
            finally:
                self._open_tickets.discard(ticket)
                if recording is not None:
                    recording.give_up()
                self._drop(ticket)
                buffer.close()

    def _new_buffer(self, cost: Cost, caller: Caller) -> EventBuffer[Event]:
        """What holds the call's events for its reader. What does not fit into memory will wait on disk.

        Raises:
            OverLimit: there is no room for what it will make at the least.
        """
        max_bytes, least = BUFFER_CHUNKS * self._limits.chunk_bytes, cost.least_response_bytes
        reserved_bytes = least if least > max_bytes else 0
        return EventBuffer(max_bytes, self.memory, self._disk, caller.name, reserved_bytes)

    def check_room(self, caller: Caller, priority: Priority) -> Ticket | None:
        """Refuses a call for which there is no room, before any work is put into it.

        Returns:
            The call that would have to go; None where there is room.

        Raises:
            OverLimit: too many calls run and wait, and the caller has no claim to the place of another.
            Unavailable: no worker is ready.
        """
        if not self._ready:
            raise Unavailable("no worker is ready", "NO_WORKER_READY", RETRY_SECONDS)
        n_own, own_limit = self._open_calls[caller.name], self._own_limit(caller)
        is_queue_full = len(self._queue) >= self._limits.max_queue_length
        if n_own < own_limit and not is_queue_full and not self._is_full:
            return None
        displaced = self._queue.displaced_by(caller, priority, among_own=n_own >= own_limit)
        if displaced is not None:
            return displaced
        if is_queue_full:
            raise OverLimit("too many calls wait for a worker", "QUEUE_FULL", RETRY_SECONDS)
        raise self._too_many_calls(caller)

    def _displace(self, ticket: Ticket) -> None:
        """A call that waits gives up its place to a new one."""
        self._queue.remove(ticket)
        self.n_displaced += 1
        message = "others hold fewer places in the full queue, and this call has given up its own"
        ticket.fail(OverLimit(message, "QUEUE_FULL", RETRY_SECONDS))

    def _too_many_calls(self, caller: Caller) -> OverLimit:
        message, own_limit = "too many calls at the same time", self._own_limit(caller)
        if self._open_calls[caller.name] >= own_limit:
            message = f"more than {own_limit} calls of {caller.name} at the same time"
        return OverLimit(message, "TOO_MANY_CONCURRENT_CALLS", RETRY_SECONDS)

    @property
    def _is_full(self) -> bool:
        return self._open_calls.total() >= self._limits.max_concurrent_calls

    def _own_limit(self, caller: Caller) -> int:
        own_limit = caller.limits.max_concurrent_calls
        return self._max_calls_per_caller if own_limit is None else own_limit

    @contextmanager
    def open_call(self, caller: Caller) -> Iterator[None]:
        """Around a call that has been found to have room. It counts as a call of its caller."""
        self._open_calls[caller.name] += 1
        try:
            yield
        finally:
            self._open_calls[caller.name] -= 1
            if not self._open_calls[caller.name]:
                del self._open_calls[caller.name]

    @contextmanager
    def call_without_worker(self, caller: Caller) -> Iterator[None]:
        """Around what is done for a call in the front alone, such as checking it. It counts as a call.

        Nobody gives up a place for it: it will soon be over. But it is let in where one that waits would be.

        Raises:
            OverLimit: too many calls at the same time.
        """
        has_claim = self._queue.displaced_by(caller, Priority.INTERACTIVE) is not None
        if self._open_calls[caller.name] >= self._own_limit(caller) or (self._is_full and not has_claim):
            raise self._too_many_calls(caller)
        with self.open_call(caller):
            yield

    def worker_is_ready(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        self._ready[worker] = ReadyWorker(worker)
        self._dispatch()

    def worker_said(
        self, worker: Worker, message: CallProgress | BatchEnded, n_bytes: int
    ) -> asyncio.Future[None] | None:
        """See `PoolObserver`."""
        ready = self._ready.get(worker)
        if ready is None:  # it has been given up
            return None
        if isinstance(message, BatchEnded):
            batch = list(ready.tickets.values())
            try:
                self._batch_ended(ready, message)
            except Exception as error:
                self._break_off_all(batch, error)
                self._give_up(ready)
            self._dispatch()
            return None
        ticket = ready.tickets.get(message.call_id)
        if ticket is None:
            return None
        stored = None
        try:
            stored = ticket.add(message.event, n_bytes)
        except Exception as error:
            self._break_off(ticket, error)
        self._watch(ready)
        return stored

    def worker_is_gone(self, worker: Worker) -> None:
        """See `PoolObserver`."""
        self._let_go(worker)
        self._dispatch()

    def _batch_ended(self, ready: ReadyWorker, message: BatchEnded) -> None:
        seconds, failure = ready.seconds_so_far, message.failure
        batch = ready.end(message.batch_id, n_workers=len(self._ready))
        if batch:
            self._settle(ready, batch, seconds, is_whole=failure is None)
        self._with_unfinished(batch, lambda ticket: self._after_failure(ticket, failure, len(batch)))

    def _with_unfinished(self, batch: list[Ticket], do: Callable[[Ticket], None]) -> None:
        """Does something with each call that a batch has left unfinished; it is lost where that fails."""
        for ticket in batch:
            if not ticket.is_over:
                try:
                    do(ticket)
                except Exception as error:
                    self._break_off(ticket, error)

    def _let_go(self, worker: Worker) -> None:
        """A worker will say nothing more: its calls run elsewhere, if they can."""
        ready = self._ready.pop(worker, None)
        if ready is None or ready.is_free:
            return
        batch = list(ready.tickets.values())
        try:
            self._settle(ready, batch, ready.seconds_so_far, is_whole=False)
            self._with_unfinished(batch, self._after_death)
        except Exception as error:
            self._break_off_all(batch, error)

    def _give_up(self, ready: ReadyWorker) -> None:
        """Ends a worker; the pool starts another."""
        try:
            self._let_go(ready.worker)
        finally:
            try:
                ready.worker.kill()
            except Exception:
                _log.exception("a worker cannot be ended")

    def _break_off_all(self, tickets: Iterable[Ticket], error: Exception) -> None:
        for ticket in tickets:
            self._queue.forget(ticket)
            if not ticket.is_over:
                self._break_off(ticket, error)

    def _break_off(self, ticket: Ticket, error: Exception) -> None:
        """Something of a call is lost."""
        known = isinstance(error, TdbError)
        ticket.break_off(error if known else self._fault(ticket, "something of it is lost", error))

    def _settle(self, ready: ReadyWorker, batch: list[Ticket], seconds: float, *, is_whole: bool) -> None:
        """The time that a batch has taken is shared out among its calls, and learned from."""
        work = sum(ticket.work for ticket in batch)
        shared_seconds = max(0.0, seconds - sum(ticket.own_seconds for ticket in batch))
        by_caller: defaultdict[str, float] = defaultdict(float)
        for ticket in batch:
            taken = ticket.own_seconds + shared_seconds * ticket.work / work
            self._queue.settle(ticket, taken)
            by_caller[ticket.terms.caller.name if ticket.terms.caller.has_token else ""] += taken
        if is_whole and not any(ticket.is_abandoned for ticket in batch):
            for pace in (ready.pace, self._pace):
                pace.saw(work, seconds)
        n_rows = sum(ticket.n_rows for ticket in batch)
        try:
            self._on_batch(BatchMeasure(ready.worker.device, len(batch), n_rows, seconds, by_caller))
        except Exception:
            _log.exception("a batch cannot be counted")

    def _check_cost(self, cost: Cost, caller: Caller) -> None:
        limit = caller.limits.within(self._limits).max_activation_bytes
        if limit is not None and cost.activation_bytes > limit:
            raise OverLimit(
                f"the call would take about {cost.activation_bytes} bytes of activations, more than the "
                f"{limit} allowed; send fewer sub-requests or shorter prompts",
                "COST_TOO_HIGH",
            )

    def _after_failure(self, ticket: Ticket, failure: TdbError | OutOfMemory | None, n_together: int) -> None:
        """Runs a call again: in half the batch when memory was short, alone when it may be at fault."""
        can_run_again = n_together > ALONE and not ticket.has_left
        if isinstance(failure, OutOfMemory):
            if can_run_again:
                self._run_again(ticket, n_together // 2)
                return
            retry_seconds = RETRY_SECONDS if n_together > ALONE else None
            message = "the worker's device has too little memory for this call"
            ticket.fail(OverLimit(message, "OUT_OF_MEMORY", retry_seconds))
        elif can_run_again:
            self._run_again(ticket, ALONE)
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
            self._run_again(ticket, ALONE)

    def _run_again(self, ticket: Ticket, max_batch_calls: int) -> None:
        ticket.start_again(max_batch_calls)
        self._queue.put_back(ticket)

    def _fault(self, ticket: Ticket, what: str, error: Exception | None = None) -> Internal:
        return Internal.logged(_log, f"{what}; call {ticket.call.call_id}", error)

    def _dispatch(self) -> None:
        """Gives waiting calls to free workers. What goes wrong with them is not its caller's fault."""
        try:
            self._fill_free_workers()
        except Exception as error:
            self._break_off_waiting(error)

    def _break_off_waiting(self, error: Exception) -> None:
        """Fails all calls that wait, also those that were taken out of the queue before something failed."""
        running = {ticket for one in self._ready.values() for ticket in one.tickets.values()}
        self._break_off_all(self._open_tickets - running, error)

    def _fill_free_workers(self) -> None:
        """The free worker that has worked least comes first."""
        free = [ready for ready in self._ready.values() if ready.is_free]
        free.sort(key=lambda ready: ready.busy_seconds)
        now = time.monotonic()
        for n_before, ready in enumerate(free):
            if not self._queue:
                return
            if not (ready.is_free and self._ready.get(ready.worker) is ready):
                continue  # the end of another worker has led here meanwhile
            share = math.ceil(len(self._queue) / (len(free) - n_before))
            starts_at = ready.waits_until(share, self._rule.max_wait_seconds)
            if starts_at > now:
                self._dispatch_later(starts_at - now)
                continue
            self._n_batches += 1
            pace = ready.pace if ready.pace.is_known else self._pace
            batch = self._queue.take_batch(share, pace)
            try:
                ready.start(self._n_batches, batch)
            except Exception as error:
                _log.exception("a worker cannot be given a batch")
                lost = [ticket for ticket in batch if ticket not in ready.tickets.values()]
                self._give_up(ready)
                self._break_off_all(lost, error)
            self._count_active()

    def _count_active(self) -> None:
        n_active = len(self._queue) + sum(ready.n_active for ready in self._ready.values())
        for ready in self._ready.values():
            ready.saw(n_active)

    def _dispatch_later(self, seconds: float) -> None:
        if self._wake_up is None:
            loop = asyncio.get_running_loop()
            self._wake_up = loop.call_later(seconds, guarded(self._wake, self._not_woken))

    def _wake(self) -> None:
        self._wake_up = None
        self._dispatch()

    def _not_woken(self, error: Exception) -> None:
        self._wake_up = None
        self._break_off_waiting(error)

    def _drop(self, ticket: Ticket) -> None:
        """The reader has gone, with all it wanted or without."""
        ticket.abandon()
        self._queue.remove(ticket)
        for ready in self._ready.values():
            if ready.tickets.get(ticket.call.call_id) is ticket:
                if not ticket.has_finished:
                    ready.worker.send(CancelCall(ticket.call.call_id))
                self._watch(ready)

    def _watch(self, ready: ReadyWorker) -> None:
        """A worker that nobody waits for any more has to say soon that its batch has ended."""
        if ready.watch is None and not ready.is_free and not ready.n_active:
            loop = asyncio.get_running_loop()
            ready.watch = loop.call_later(HANG_SECONDS, self._end_watch, ready)

    def _end_watch(self, ready: ReadyWorker) -> None:
        try:
            self._give_up_if_there(ready)
        except Exception:
            _log.exception("a worker that hangs cannot be given up; tried again")
            ready.watch = None
            self._watch(ready)

    def _give_up_if_there(self, ready: ReadyWorker) -> None:
        if self._ready.get(ready.worker) is ready:
            _log.error("a worker does not come to the end of a batch that nobody waits for; it is replaced")
            self._give_up(ready)
            self._dispatch()

"""An exception in whatever runs on the event loop loses no call in silence, and the server goes on serving.

Each place is made to fail in turn: what is called when a worker says something, is ready, or is gone, when a
timer goes off, or when a caller comes or leaves.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial

import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.limits import Limits
from tdb_server.domain.results import Finished, ObjectiveValues
from tdb_server.errors import Internal, TdbError
from tdb_server.workers import callbacks
from tdb_server.workers import scheduler as scheduler_module
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.callbacks import keep_trying
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.fair_queue import FairQueue
from tdb_server.workers.messages import BatchEnded, CallProgress, CancelCall, OutOfMemory, RunBatch
from tdb_server.workers.ready_worker import ReadyWorker
from tdb_server.workers.result_cache import CacheKey, Recording, ResultCache
from tdb_server.workers.scheduler import Scheduler
from tdb_server.workers.ticket import TakenUp, Terms, Ticket, Unary

from tests.unit.workers.conftest import make_call, make_cost

N_CALLS = 12
N_EVENTS = 5


class DiligentWorker:
    """Answers every batch soon, and has a successor when it is killed; once it has too little memory."""

    device = "cpu"

    def __init__(self, scheduler: Scheduler, n_batches: int = 0) -> None:
        self._scheduler = scheduler
        self._n_batches = n_batches
        self._is_gone = False
        scheduler.worker_is_ready(self)

    def send(self, message: RunBatch | CancelCall) -> None:
        if isinstance(message, RunBatch):
            asyncio.get_running_loop().call_later(0.001, self._run, message)

    def kill(self) -> None:
        self._is_gone = True
        asyncio.get_running_loop().call_later(0.001, self._replace)

    def _replace(self) -> None:
        keep_trying(partial(self._scheduler.worker_is_gone, self), "as a pool does")
        DiligentWorker(self._scheduler, self._n_batches)

    def _run(self, batch: RunBatch) -> None:
        self._n_batches += 1
        failure = OutOfMemory() if self._n_batches == 3 and len(batch.calls) > 1 else None
        if self._n_batches == 5:
            self.kill()
        for call in () if failure else batch.calls:
            for index in range(N_EVENTS):
                self._say(CallProgress(call.call_id, ObjectiveValues(index, 1.5, None)))
            self._say(CallProgress(call.call_id, Finished(n_events=N_EVENTS)))
        self._say(BatchEnded(batch.batch_id, failure))

    def _say(self, message: CallProgress | BatchEnded) -> None:
        if not self._is_gone:
            try:
                self._scheduler.worker_said(self, message, 10)
            except Fault:
                self.kill()  # as `WorkerProcess` does


class Fault(Exception):  # noqa: N818
    """Made by the test."""


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, turn: int) -> None:
    """Has a method fail the so-manyth time that it is called."""
    method, calls = getattr(owner, name), []

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) == turn:
            raise Fault(name)
        return method(*arguments, **keywords)

    monkeypatch.setattr(owner, name, failing)


async def ask(scheduler: Scheduler, call: Call, terms: Terms) -> list[object]:
    async with aclosing(scheduler.submit(call, make_cost(), terms)) as events:
        return [event async for event in events]


def is_whole(events: list[object]) -> bool:
    kinds = [type(event) for event in events]
    return kinds == [TakenUp, *[ObjectiveValues] * N_EVENTS, Finished]


@pytest.mark.parametrize("turn", [1, 2, 7])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Ticket, "add"),
        (Ticket, "take_up"),
        (Ticket, "start_again"),
        (Ticket, "next_event"),
        (Ticket, "abandon"),
        (EventBuffer, "put"),
        (Recording, "add"),
        (Recording, "start_again"),
        (ReadyWorker, "start"),
        (ReadyWorker, "end"),
        (ReadyWorker, "saw"),
        (ReadyWorker, "waits_until"),
        (FairQueue, "take_batch"),
        (FairQueue, "put_back"),
        (FairQueue, "settle"),
        (BatchRule, "fits"),
        (DiligentWorker, "send"),
        (Scheduler, "_after_failure"),
        (Scheduler, "_after_death"),
        (Scheduler, "worker_is_gone"),
        (Scheduler, "_let_go"),
        (Scheduler, "_settle"),
        (Scheduler, "_batch_ended"),
        (Scheduler, "_watch"),
        (Scheduler, "_dispatch"),
        (Scheduler, "_dispatch_later"),
        (Scheduler, "_wake"),
        (Scheduler, "_count_active"),
        (Scheduler, "_drop"),
        (Scheduler, "_give_up"),
        (Scheduler, "_give_up_if_there"),
    ],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
async def test_no_fault_is_silent(monkeypatch, owner, name, turn):
    monkeypatch.setattr(scheduler_module, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(callbacks, "RETRY_SECONDS", 0.01)
    measured = []
    rule = BatchRule(max_tokens=16, max_activation_bytes=10**9, max_wait_seconds=0.01, max_seconds=2.0)
    scheduler = Scheduler(Limits(), rule, 100, ResultCache(10_000), measured.append)
    DiligentWorker(scheduler)
    fail_at(monkeypatch, owner, name, turn)

    async with asyncio.timeout(60):
        outcomes = []
        for number in range(0, N_CALLS, 4):
            keys = [CacheKey("anyone", bytes((number + one,))) for one in range(4)]
            terms = [
                Terms(
                    Caller("anyone"),
                    unary=None if one % 2 else Unary("StreamDebug", 10**9, 10**9),
                    cache_key=key,
                )
                for one, key in enumerate(keys)
            ]
            outcomes += await asyncio.gather(
                *(ask(scheduler, make_call(), one) for one in terms), return_exceptions=True
            )
            if not scheduler._ready:
                DiligentWorker(scheduler)  # as a pool that hears at last that a worker has gone
    assert all(isinstance(one, TdbError | Fault) or is_whole(one) for one in outcomes), outcomes
    assert sum(is_whole(one) for one in outcomes if isinstance(one, list)) >= N_CALLS / 3
    monkeypatch.undo()
    assert not scheduler._open_tickets
    assert len(scheduler._queue) == 0
    assert not scheduler._queue._estimates
    assert is_whole(await ask(scheduler, make_call(), Terms(Caller("anyone"))))


async def test_what_cannot_be_counted_disturbs_nobody():
    def failing(_):
        raise Fault

    rule = BatchRule(max_tokens=16, max_activation_bytes=10**9, max_wait_seconds=0.01, max_seconds=2.0)
    scheduler = Scheduler(Limits(), rule, 100, ResultCache(0), failing)
    DiligentWorker(scheduler)
    for _ in range(3):
        assert is_whole(await ask(scheduler, make_call(), Terms(Caller("anyone"))))


async def test_a_fault_when_the_wait_for_more_calls_ends_fails_the_call_that_waited(make_worker, monkeypatch):
    """Alone, so that nothing else would have it looked after."""
    rule = BatchRule(max_tokens=16, max_activation_bytes=10**9, max_wait_seconds=0.01, max_seconds=2.0)
    scheduler = Scheduler(Limits(), rule, 100, ResultCache(0))
    worker = make_worker(scheduler)
    for ready in scheduler._ready.values():
        ready.n_expected = 2
    fail_at(monkeypatch, Scheduler, "_wake", 1)

    async with asyncio.timeout(30):
        with pytest.raises(Internal):
            await ask(scheduler, make_call(), Terms(Caller("anyone")))
        asking = asyncio.create_task(ask(scheduler, make_call(), Terms(Caller("anyone"))))
        while not worker.batches:  # noqa: ASYNC110 - the next timer goes off
            await asyncio.sleep(0.001)
        worker.answer()
        assert isinstance((await asking)[-1], Finished)


@pytest.mark.parametrize("name", ["worker_is_gone", "_let_go", "_settle", "_after_death"])
async def test_a_fault_when_a_worker_is_gone_leaves_none_of_its_calls_waiting(make_worker, monkeypatch, name):
    """With no other worker, and nothing else that happens."""
    monkeypatch.setattr(callbacks, "RETRY_SECONDS", 0.001)
    rule = BatchRule(max_tokens=16, max_activation_bytes=10**9, max_wait_seconds=0.0, max_seconds=2.0)
    scheduler = Scheduler(Limits(), rule, 100, ResultCache(0))
    worker = make_worker(scheduler)
    fail_at(monkeypatch, Scheduler, name, 1)
    asking = asyncio.create_task(ask(scheduler, make_call(), Terms(Caller("anyone"))))
    while not worker.batches:  # noqa: ASYNC110
        await asyncio.sleep(0)

    keep_trying(partial(scheduler.worker_is_gone, worker), "as a pool does")
    async with asyncio.timeout(30):
        while worker in scheduler._ready:  # noqa: ASYNC110 - tried again
            await asyncio.sleep(0.001)
        successor = make_worker(scheduler)
        if successor.batches:
            successor.answer()
            assert isinstance((await asking)[-1], Finished)
        else:
            with pytest.raises(Internal):
                await asking


async def test_a_worker_that_hangs_is_given_up_although_the_first_try_fails(make_worker, monkeypatch):
    monkeypatch.setattr(scheduler_module, "HANG_SECONDS", 0.001)
    rule = BatchRule(max_tokens=16, max_activation_bytes=10**9, max_wait_seconds=0.0, max_seconds=2.0)
    scheduler = Scheduler(Limits(), rule, 100, ResultCache(0))
    worker = make_worker(scheduler)
    fail_at(monkeypatch, Scheduler, "_give_up_if_there", 1)
    asking = asyncio.create_task(ask(scheduler, make_call(), Terms(Caller("anyone"))))
    while not worker.batches:  # noqa: ASYNC110
        await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(30):
        while not worker.is_killed:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

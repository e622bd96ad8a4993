from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.domain.cost import Cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.priority import Priority
from tdb_server.domain.results import Finished, ObjectiveValues
from tdb_server.errors import Internal, OverLimit, ResponseTooLarge, Unavailable
from tdb_server.workers import scheduler as scheduler_module
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.measures import BatchMeasure, OnBatch, measure_nothing
from tdb_server.workers.messages import CallProgress, OutOfMemory
from tdb_server.workers.result_cache import CacheKey, ResultCache
from tdb_server.workers.scheduler import MAX_DEATHS, Scheduler
from tdb_server.workers.ticket import TakenUp, Terms, Unary

from tests.unit.workers.conftest import make_call, make_cost

ANYONE = Caller("anyone")
KEY = CacheKey("anyone", b"key")
UNARY = Unary("StreamDebug", max_response_bytes=10**9, max_block_bytes=10**9)
WHOLE = Terms(ANYONE, unary=UNARY)
IN_PIECES = Terms(ANYONE)


def make_scheduler(
    limits: Limits | None = None,
    max_tokens: int = 10_000,
    wait: float = 0.0,
    max_calls_per_caller: int = 100,
    cache_bytes: int = 0,
    on_batch: OnBatch = measure_nothing,
) -> Scheduler:
    rule = BatchRule(max_tokens, max_activation_bytes=10**9, max_wait_seconds=wait, max_seconds=10.0)
    return Scheduler(limits or Limits(), rule, max_calls_per_caller, ResultCache(cache_bytes), on_batch)


async def run(
    scheduler: Scheduler, call: Call | None = None, terms: Terms = WHOLE, cost: Cost | None = None
) -> list[object]:
    """All events of a call."""
    async with aclosing(scheduler.submit(call or make_call(), cost or make_cost(), terms)) as events:
        return [event async for event in events]


async def start(*runs) -> list[asyncio.Task]:
    """Starts calls and lets them get as far as they can by themselves."""
    tasks = [asyncio.ensure_future(one) for one in runs]
    await settle()
    return tasks


async def until(condition: Callable[[], bool]) -> None:
    """Fails when it takes absurdly long."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_call_runs_and_its_events_come_in_order(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    (task,) = await start(run(scheduler))
    worker.answer()
    taken_up, values, finished = await task
    assert isinstance(taken_up, TakenUp)
    assert not taken_up.is_cached
    assert values == ObjectiveValues(0, 1.5, None)
    assert finished.seconds.queue == taken_up.queue_seconds


async def test_a_call_of_which_something_was_lost_fails(make_worker):
    scheduler = make_scheduler(cache_bytes=10_000)
    worker = make_worker(scheduler)
    for terms in (Terms(ANYONE, cache_key=KEY), WHOLE):
        call = make_call()
        (task,) = await start(run(scheduler, call, terms))
        worker.say(call, ObjectiveValues(0, 1.5, None))
        worker.say(call, Finished(n_events=2))
        worker.end()
        with pytest.raises(Internal):
            await task
    assert ResultCache(0).n_bytes == scheduler._cache.n_bytes


async def test_calls_that_wait_share_the_next_batch(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(5)))
    assert worker.n_calls == [1]
    worker.answer()
    assert worker.n_calls == [1, 4]
    worker.answer()
    assert all(isinstance(events[-1], Finished) for events in await asyncio.gather(*tasks))


async def test_workers_share_what_waits(make_worker):
    scheduler = make_scheduler()
    first, second = make_worker(scheduler), make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(8)))
    assert (first.n_calls, second.n_calls) == ([1], [1])
    first.answer()
    second.answer()
    assert (first.n_calls, second.n_calls) == ([1, 6], [1])
    first.answer()
    await asyncio.gather(*tasks)


async def test_a_worker_that_was_busy_waits_for_the_callers_that_come_back(make_worker):
    scheduler = make_scheduler(wait=10.0)
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(3)))
    worker.answer()
    assert worker.n_calls == [1]  # one has its answer and may come back, two wait
    tasks += await start(run(scheduler))
    assert worker.n_calls == [1, 3]
    worker.answer()
    tasks += await start(run(scheduler), run(scheduler))
    assert worker.n_calls == [1, 3]
    tasks += await start(run(scheduler))
    assert worker.n_calls == [1, 3, 3]
    worker.answer()
    await asyncio.gather(*tasks)


async def test_the_wait_is_over_when_nobody_comes(make_worker):
    scheduler = make_scheduler(wait=0.3)
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(4)))
    worker.answer()
    await until(lambda: worker.n_calls == [1, 3])
    worker.answer()
    tasks += await start(run(scheduler))
    assert worker.n_calls == [1, 3]
    await until(lambda: worker.n_calls == [1, 3, 1])
    worker.answer()
    await asyncio.gather(*tasks)


async def test_one_caller_alone_never_waits(make_worker):
    scheduler = make_scheduler(wait=10.0)
    worker = make_worker(scheduler)
    for _ in range(3):
        (task,) = await start(run(scheduler))
        worker.answer()
        await task
    assert worker.n_calls == [1, 1, 1]


async def test_a_caller_that_is_back_before_the_batch_has_ended_counts_once(make_worker):
    scheduler = make_scheduler(wait=10.0)
    worker = make_worker(scheduler)
    for _ in range(3):
        call = make_call()
        (task,) = await start(run(scheduler, call))
        worker.say(call, Finished())
        await task
        (again,) = await start(run(scheduler))
        worker.end()
        worker.answer()
        await again
    assert worker.n_calls == [1] * 6


async def test_halves_that_take_turns_become_one_batch(make_worker):
    scheduler = make_scheduler(wait=10.0, max_tokens=16)
    worker = make_worker(scheduler)
    tasks = await start(run(scheduler), run(scheduler))
    worker.answer()
    tasks += await start(run(scheduler))
    assert worker.n_calls == [1, 2]
    tasks += await start(run(scheduler), run(scheduler))  # come while the other two run
    worker.answer()
    assert worker.n_calls == [1, 2]
    tasks += await start(run(scheduler), run(scheduler))
    assert worker.n_calls == [1, 2, 4]
    worker.answer()
    await asyncio.gather(*tasks)


async def test_refused_without_workers():
    with pytest.raises(Unavailable) as refused:
        await run(make_scheduler())
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("NO_WORKER_READY", 1.0)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_queue_length=2), "QUEUE_FULL"),
        (Limits(max_concurrent_calls=3), "TOO_MANY_CONCURRENT_CALLS"),
    ],
)
async def test_refused_when_full(make_worker, limits, reason):
    scheduler = make_scheduler(limits)
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(3)))
    with pytest.raises(OverLimit) as refused:
        await run(scheduler)
    assert (refused.value.reason, refused.value.retry_after_seconds) == (reason, 1.0)
    worker.answer()
    worker.answer()
    await asyncio.gather(*tasks)
    (task,) = await start(run(scheduler))
    worker.answer()
    await task


async def test_callers_have_limits_of_their_own(make_worker):
    scheduler = make_scheduler(max_calls_per_caller=2)
    worker = make_worker(scheduler)
    tasks = await start(run(scheduler), run(scheduler))
    with pytest.raises(OverLimit, match="more than 2 calls of anyone"):
        await run(scheduler)
    tasks += await start(run(scheduler, terms=Terms(Caller("someone else"))))
    limited = Terms(Caller("limited", CallerLimits(max_concurrent_calls=0)))
    with pytest.raises(OverLimit, match="more than 0 calls of limited"):
        await run(scheduler, terms=limited)
    worker.answer()
    worker.answer()
    await asyncio.gather(*tasks)


async def test_nobody_can_fill_the_queue(make_worker):
    scheduler = make_scheduler(Limits(max_queue_length=3))
    worker = make_worker(scheduler)
    flood = await start(*(run(scheduler) for _ in range(4)))
    other = Terms(Caller("someone else"), unary=UNARY)
    (light,) = await start(run(scheduler, terms=other))
    assert scheduler.n_displaced == 1
    with pytest.raises(OverLimit) as refused:
        await flood[3]
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("QUEUE_FULL", 1.0)
    for _ in range(3):
        worker.answer()
    await asyncio.gather(light, *flood[:3])


async def test_connections_of_a_caller_share_its_places(make_worker):
    scheduler = make_scheduler(max_calls_per_caller=3)
    worker = make_worker(scheduler)
    flood = await start(*(run(scheduler) for _ in range(3)))
    beside = Terms(Caller("anyone", connection="another"), unary=UNARY)
    (light,) = await start(run(scheduler, terms=beside))
    with pytest.raises(OverLimit):
        await flood[2]
    for _ in range(2):
        worker.answer()
    await asyncio.gather(light, *flood[:2])


async def test_a_light_call_has_the_next_turn(make_worker):
    """And is not put into a batch with heavy ones."""
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    scheduler._pace.saw(1e9, 1.0)
    heavy = await start(*(run(scheduler, terms=Terms(Caller("a")), cost=make_cost(10**9)) for _ in range(4)))
    call = make_call()
    (light,) = await start(run(scheduler, call, Terms(Caller("b"), unary=UNARY)))
    worker.answer()
    assert worker.batches[1].calls == (call,)
    while not all(task.done() for task in heavy):
        worker.answer()
        await settle()
    await asyncio.gather(light, *heavy)


async def test_equal_callers_share_one_batch(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    for _ in range(3):
        (first,) = await start(run(scheduler))
        tasks = await start(
            *(run(scheduler, terms=Terms(Caller(str(number)), unary=UNARY)) for number in range(8))
        )
        worker.answer()
        worker.answer()
        await asyncio.gather(first, *tasks)
    assert worker.n_calls == [1, 8, 1, 8, 1, 8]


async def test_what_a_batch_has_taken_is_shared_out(make_worker):
    measured: list[BatchMeasure] = []
    scheduler = make_scheduler(on_batch=measured.append)
    worker = make_worker(scheduler)
    scheduler._pace.saw(1e12, 1.0)
    (first,) = await start(run(scheduler))
    alice = Terms(Caller("alice", has_token=True), unary=UNARY)
    tasks = await start(run(scheduler, terms=alice), run(scheduler))
    worker.answer()
    worker.answer()
    await asyncio.gather(first, *tasks)
    assert measured[1].n_calls == 2
    assert measured[1].caller_seconds.keys() == {"alice", ""}
    assert sum(measured[1].caller_seconds.values()) == pytest.approx(measured[1].seconds)


async def test_refused_when_too_dear(make_worker):
    scheduler = make_scheduler(Limits(max_activation_bytes=99))
    make_worker(scheduler)
    with pytest.raises(OverLimit) as refused:
        await run(scheduler)
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("COST_TOO_HIGH", None)


async def test_what_is_too_dear_is_known_when_a_worker_has_said_what_it_has_room_for(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    (task,) = await start(run(scheduler))
    worker.answer()
    await task
    scheduler.set_max_activation_bytes(99)
    with pytest.raises(OverLimit, match="more than the 99 allowed"):
        await run(scheduler)


async def test_cancelled_while_it_waits(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    running, waiting = await start(run(scheduler), run(scheduler))
    waiting.cancel()
    await settle()
    worker.answer()
    await running
    assert worker.n_calls == [1]
    assert worker.cancelled == []


async def test_cancelled_while_it_runs(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    call = make_call()
    (task,) = await start(run(scheduler, call))
    task.cancel()
    await settle()
    assert worker.cancelled == [call.call_id]
    worker.say(call, Finished())  # was on its way
    worker.end()
    (task,) = await start(run(scheduler))
    worker.answer()
    await task


async def test_a_worker_that_does_not_stop_is_killed(make_worker, monkeypatch):
    monkeypatch.setattr(scheduler_module, "HANG_SECONDS", 0.01)
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    (task,) = await start(run(scheduler))
    task.cancel()
    await until(lambda: worker.is_killed)


async def test_after_a_death_calls_run_again_each_alone(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(4)))
    worker.answer()
    worker.die()
    second = make_worker(scheduler)
    for _ in range(3):
        second.answer()
    assert second.n_calls == [1, 1, 1]
    assert all(isinstance(events[-1], Finished) for events in await asyncio.gather(*tasks))


async def test_what_came_before_a_death_is_dropped(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    call = make_call()
    (task,) = await start(run(scheduler, call))
    worker.say(call, ObjectiveValues(0, -1.0, None))
    worker.die()
    make_worker(scheduler).answer()
    events = await task
    assert [type(event) for event in events] == [TakenUp, ObjectiveValues, Finished]
    assert events[1].loss == 1.5


async def test_a_stream_that_has_begun_without_results_runs_again(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    (task,) = await start(run(scheduler, terms=IN_PIECES))
    worker.die()
    make_worker(scheduler).answer()
    assert [type(event) for event in await task] == [TakenUp, ObjectiveValues, Finished]


async def test_a_stream_whose_results_have_left_ends(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    call = make_call()
    (task,) = await start(run(scheduler, call, IN_PIECES))
    worker.say(call, ObjectiveValues(0, 1.0, None))
    await settle()
    worker.die()
    with pytest.raises(Unavailable) as ended:
        await task
    assert (ended.value.reason, ended.value.retry_after_seconds) == ("WORKER_DIED", 1.0)


async def test_a_call_that_kills_workers_is_refused_in_the_end(make_worker):
    scheduler = make_scheduler()
    (deadly,) = await start(run(scheduler, make_first(make_worker, scheduler)))
    for _ in range(MAX_DEATHS - 1):
        next(iter(scheduler._ready)).die()
        make_worker(scheduler)
    (harmless,) = await start(run(scheduler))
    next(iter(scheduler._ready)).die()
    with pytest.raises(Internal):
        await deadly
    worker = make_worker(scheduler)
    worker.answer()
    await harmless


def make_first(make_worker, scheduler: Scheduler) -> Call:
    make_worker(scheduler)
    return make_call()


async def test_out_of_memory_halves_the_batch_and_refuses_only_what_fails_alone(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(5)))
    worker.answer()
    worker.end(OutOfMemory())
    assert worker.n_calls == [1, 4, 2]
    worker.end(OutOfMemory())
    worker.answer()  # the other two
    worker.end(OutOfMemory())
    worker.answer()
    assert worker.n_calls == [1, 4, 2, 2, 1, 1]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, OverLimit)]
    assert [one.reason for one in refused] == ["OUT_OF_MEMORY"]
    assert [one.retry_after_seconds for one in refused] == [None]


async def test_a_fault_in_company_is_tried_again_alone(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(3)))
    worker.answer()
    worker.end(Internal("abc"))
    worker.end(Internal("def"))
    worker.answer()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [one.error_id for one in outcomes if isinstance(one, Internal)] == ["def"]


async def test_results_are_kept_for_equal_calls(make_worker):
    scheduler = make_scheduler(cache_bytes=10_000)
    worker = make_worker(scheduler)
    terms = Terms(ANYONE, cache_key=KEY)
    (task,) = await start(run(scheduler, terms=terms))
    worker.answer()
    computed = await task
    kept = await run(scheduler, terms=terms)
    assert len(worker.batches) == 1
    assert kept[0] == TakenUp(0.0, is_cached=True)
    assert kept[1:-1] == computed[1:-1]
    assert kept[-1] == Finished()


async def test_kept_results_are_no_way_past_the_own_limit(make_worker):
    scheduler = make_scheduler(cache_bytes=10_000)
    worker = make_worker(scheduler)
    (task,) = await start(run(scheduler, terms=Terms(ANYONE, cache_key=KEY)))
    worker.answer()
    await task
    small = Caller("anyone", CallerLimits(max_activation_bytes=99))
    with pytest.raises(OverLimit) as refused:
        await run(scheduler, terms=Terms(small, cache_key=KEY))
    assert refused.value.reason == "COST_TOO_HIGH"


async def test_nothing_is_kept_of_a_call_that_failed(make_worker):
    scheduler = make_scheduler(cache_bytes=10_000)
    worker = make_worker(scheduler)
    terms = Terms(ANYONE, cache_key=KEY)
    call = make_call()
    (task,) = await start(run(scheduler, call, terms))
    worker.say(call, ObjectiveValues(0, 1.0, None))
    worker.end(Internal("abc"))
    with pytest.raises(Internal):
        await task
    (task,) = await start(run(scheduler, terms=terms))
    assert len(worker.batches) == 2
    worker.answer()
    await task


async def test_nothing_is_left_behind(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    tasks = await start(*(run(scheduler) for _ in range(6)))
    tasks[3].cancel()
    worker.answer()
    worker.answer()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(scheduler._queue) == 0
    assert not scheduler._open_calls
    assert not next(iter(scheduler._ready.values())).tickets


async def test_calls_without_a_worker_count_as_calls(make_worker):
    scheduler = make_scheduler(max_calls_per_caller=2)
    make_worker(scheduler)
    await start(run(scheduler))
    with scheduler.call_without_worker(ANYONE):
        with pytest.raises(OverLimit, match="more than 2 calls of anyone"):
            scheduler.check_room(ANYONE, Priority.INTERACTIVE)
        with pytest.raises(OverLimit), scheduler.call_without_worker(ANYONE):
            pass
    with scheduler.call_without_worker(ANYONE):
        pass


async def test_a_unary_answer_that_grows_too_large_ends_at_once(make_worker):
    scheduler = make_scheduler()
    worker = make_worker(scheduler)
    terms = Terms(ANYONE, unary=Unary("StreamDebug", max_response_bytes=1000, max_block_bytes=1000))
    call = make_call()
    (task,) = await start(run(scheduler, call, terms))
    message = CallProgress(call.call_id, ObjectiveValues(0, 1.5, None))
    scheduler.worker_said(worker, message, 1500)
    await settle()
    assert not task.done()
    scheduler.worker_said(worker, message, 1500)
    await settle()
    with pytest.raises(ResponseTooLarge, match="at least 1500 bytes") as refused:
        await task
    assert refused.value.streaming_call == "StreamDebug"
    assert worker.cancelled == [call.call_id]


async def test_a_call_that_makes_more_than_there_is_disk_for_is_refused_unrun(make_worker):
    scheduler = make_scheduler(Limits(max_spool_bytes=10_000, chunk_bytes=1024))
    worker = make_worker(scheduler)
    cost = Cost(1, response_bytes=10_000, least_response_bytes=5001)
    with pytest.raises(OverLimit) as refused:
        async with aclosing(scheduler.submit(make_call(), cost, IN_PIECES)) as events:
            await anext(events)
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("NO_ROOM_FOR_ANSWER", None)
    assert worker.n_calls == []


def test_how_long_a_call_is_likely_to_take_is_known_once_something_was_measured():
    scheduler, cost = make_scheduler(), Cost(999, response_bytes=0, least_response_bytes=0)
    assert scheduler.likely_seconds(cost, 1) is None
    scheduler._pace.saw(1000.0, 2.0)
    assert scheduler.likely_seconds(cost, 1) == pytest.approx(2.0)
    computed = Cost(1, response_bytes=0, least_response_bytes=0, computed_bytes=1999)
    assert scheduler.likely_seconds(computed, 5) == pytest.approx(4.0)

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from functools import partial

import pytest
from tdb_server.domain.budget import Budget
from tdb_server.errors import OverLimit
from tdb_server.service.fair_threads import FairThreads


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_take_turns():
    threads, done, goes_on = FairThreads(Budget(10**6, "bytes", "FULL"), 1), [], threading.Event()

    def work(name: str) -> None:
        goes_on.wait(30)
        done.append(name)

    tasks = [asyncio.ensure_future(threads.run("many", 1, lambda i=i: work(f"many {i}"))) for i in range(5)]
    await settle()
    tasks.append(asyncio.ensure_future(threads.run("one", 1, lambda: work("one"))))
    await settle()
    goes_on.set()
    await asyncio.gather(*tasks)
    assert done == ["many 0", "many 1", "one", "many 2", "many 3", "many 4"]
    threads.stop()


async def test_memory_is_held_until_the_work_is_done_whoever_waits_for_it():
    budget = Budget(100, "bytes", "FULL")
    threads, goes_on = FairThreads(budget, 1), threading.Event()
    running = asyncio.ensure_future(threads.run("a", 30, lambda: goes_on.wait(30)))
    waiting = asyncio.ensure_future(threads.run("a", 20, lambda: None))
    await settle()
    with pytest.raises(OverLimit, match="bytes"):
        await threads.run("a", 40, lambda: None)
    waiting.cancel()
    running.cancel()
    await settle()
    assert budget.n_bytes == 30
    goes_on.set()
    assert await threads.run("b", 10, lambda: 7) == 7
    assert budget.n_bytes == 0
    threads.stop()


async def test_errors_come_through():
    threads = FairThreads(Budget(100, "bytes", "FULL"))

    def fail() -> None:
        raise OverLimit("no", "FULL")

    with pytest.raises(OverLimit):
        await threads.run("a", 1, fail)
    assert await threads.run("a", 1, lambda: 1) == 1
    threads.stop()


class Request:
    """Something large."""


async def test_an_error_does_not_keep_what_was_read():
    threads, request = FairThreads(Budget(100, "bytes", "FULL")), Request()
    kept = weakref.ref(request)

    def fail(read: Request) -> None:
        raise OverLimit(f"no {read}", "FULL")

    gc.disable()
    try:
        with contextlib.suppress(OverLimit):
            await threads.run("a", 1, partial(fail, request))
        del request
        await settle()
        assert kept() is None
    finally:
        gc.enable()
        threads.stop()


async def test_a_fault_after_the_work_loses_no_thread(monkeypatch):
    budget = Budget(100, "bytes", "FULL")
    threads, told = FairThreads(budget, 1), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def failing(*_):
        raise ArithmeticError

    with monkeypatch.context() as broken:
        broken.setattr(Budget, "give_back", failing)
        assert await threads.run("a", 10, lambda: 7) == 7
        await settle()
    assert [type(one) for one in told] == [ArithmeticError]
    async with asyncio.timeout(30):
        assert await threads.run("b", 10, lambda: 8) == 8
    threads.stop()

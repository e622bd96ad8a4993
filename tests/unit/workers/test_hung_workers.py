"""Real workers that hang, in each part of their lives, and the pool that replaces them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.requests import InferenceSpec, InferenceSubRequest
from tdb_server.domain.results import Finished
from tdb_server.errors import ModelError
from tdb_server.pool_settings import WorkerCare
from tdb_server.workers import liveness
from tdb_server.workers import pool as pool_module
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.liveness import Liveness
from tdb_server.workers.messages import Configuration
from tdb_server.workers.pool import LocalPool
from tdb_server.workers.result_cache import ResultCache
from tdb_server.workers.scheduler import Scheduler
from tdb_server.workers.ticket import Terms

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-a"
PATIENCE_SECONDS = 90
SHORT = WorkerCare(silence_seconds=3, step_seconds=60)
SHORT_STEP = WorkerCare(silence_seconds=60, step_seconds=2)

HANG_ONCE = """
import pathlib
import {module} as patched
def hang_once(*arguments, real=patched.{name}, **options):
    try:
        pathlib.Path({flag!r}).touch(exist_ok=False)
    except FileExistsError:
        return real(*arguments, **options)
    {hang}
patched.{name} = hang_once
"""
DEADLOCK = "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"
ENDLESS = "import re; re.match('(a*)*b', 'a' * 100)"


def make_scheduler() -> Scheduler:
    return Scheduler(Limits(), BatchRule(1024, 1 << 33, 0.0, 2.0), 64, ResultCache(0))


@asynccontextmanager
async def running_pool(scheduler: Scheduler, bounds: WorkerCare = SHORT) -> AsyncIterator[LocalPool]:
    """One worker, stopped at the end."""
    configuration = Configuration(str(TINY_MODEL), (), "cpu", 0, "float32", 1)
    pool = LocalPool([configuration], scheduler, lambda _: None, lambda *_: None, bounds)
    pool.start()
    yield pool
    await pool.stop()


async def until_ready(pool: LocalPool) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while pool.n_ready != 1:  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0.02)


async def answer(scheduler: Scheduler) -> object:
    call = Call("a", (InferenceSubRequest(InferenceSpec(token_ids=(1, 2, 3))),))
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [one async for one in scheduler.submit(call, Cost(1, 1, 1), Terms(Caller("c")))][-1]


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


@pytest.fixture
def hangs_once(tmp_path, monkeypatch):
    """Has every worker run a few lines at its start, by which the first to come to a place hangs."""

    def arrange(name: str, hang: str) -> None:
        module, _, function = name.partition(".")
        flag = str(tmp_path / f"{function} has hung")
        code = HANG_ONCE.format(module=f"tdb_server.workers.{module}", name=function, hang=hang, flag=flag)
        with (tmp_path / "sitecustomize.py").open("a") as lines:
            lines.write(code)

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return arrange


async def test_a_worker_that_is_stopped_is_replaced_whatever_it_is_at_and_its_call_is_answered():
    scheduler = make_scheduler()
    before = children()
    async with running_pool(scheduler) as pool:
        (pid,) = children() - before
        os.kill(pid, signal.SIGSTOP)  # before its first word
        await until_ready(pool)
        assert pool.n_restarts == 1
        (pid,) = children() - before
        os.kill(pid, signal.SIGSTOP)  # while it waits
        assert isinstance(await answer(scheduler), Finished)
        assert pool.n_restarts == 2


async def test_workers_that_hang_in_a_batch_cost_its_call_only_time(hangs_once):
    """The first never comes to the end of it, and the word that the second has is lost."""
    hangs_once("batch_run.run_batch", DEADLOCK)
    hangs_once("messages.BatchEnded", "return None")
    scheduler = make_scheduler()
    async with running_pool(scheduler) as pool:
        await until_ready(pool)
        assert isinstance(await answer(scheduler), Finished)
        assert pool.n_restarts == 1
        assert isinstance(await answer(scheduler), Finished)
        assert pool.n_restarts == 2


async def test_a_worker_with_an_endless_step_in_native_code_costs_the_call_only_time(hangs_once, monkeypatch):
    """It computes, holds the interpreter's lock, and so sends no heartbeats either."""
    # That a worker counts less as stuck while others take the processor is shown without waiting for it.
    monkeypatch.setattr(liveness, "HELD_UP", 1.0)
    hangs_once("batch_run.run_batch", ENDLESS)
    scheduler = make_scheduler()
    async with running_pool(scheduler) as pool:
        await until_ready(pool)
        pool._slots[0]._liveness = Liveness(SHORT_STEP)  # for this one, not for the start of its successor
        assert isinstance(await answer(scheduler), Finished)
        assert isinstance(await answer(scheduler), Finished)
        assert pool.n_restarts == 1


async def test_workers_that_hang_while_loading_are_not_started_for_ever(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(DEADLOCK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(pool_module, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(pool_module, "MAX_CRASHES_WHILE_LOADING", 2)
    async with running_pool(make_scheduler(), SHORT_STEP) as pool, asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(ModelError, match=r"2 workers in a row hung.*no progress"):
            await pool.first_ready()

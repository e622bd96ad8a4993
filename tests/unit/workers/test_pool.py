from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from tdb_server.errors import ModelError, ModelNotFound
from tdb_server.pool_settings import WorkerCare
from tdb_server.workers import callbacks as callbacks_module
from tdb_server.workers import pool as pool_module
from tdb_server.workers.messages import Configuration
from tdb_server.workers.pool import LocalPool

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-a"


def n_open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


class Observer:
    """Counts workers as they come and go."""

    def __init__(self) -> None:
        self.ready: list = []
        self.changed = asyncio.Event()

    def worker_is_ready(self, worker) -> None:
        self.ready.append(worker)
        self.changed.set()

    def worker_said(self, worker, message, n_bytes) -> None: ...

    def worker_is_gone(self, worker) -> None:
        self.ready.remove(worker)
        self.changed.set()

    async def until(self, n_ready: int) -> None:
        async with asyncio.timeout(60):
            while len(self.ready) != n_ready:
                self.changed.clear()
                await self.changed.wait()


def make_pool(observer: Observer, n_workers: int = 1, model: Path = TINY_MODEL, **callbacks) -> LocalPool:
    configurations = [Configuration(str(model), (), "cpu", i, "float32", 1) for i in range(n_workers)]
    on_readiness = callbacks.get("on_readiness", lambda n_ready: None)
    on_loading = callbacks.get("on_loading", lambda worker_index, stage, fraction: None)
    return LocalPool(configurations, observer, on_readiness, on_loading, WorkerCare())


async def test_workers_start_say_how_far_they_are_and_are_replaced():
    observer, readiness, loading = Observer(), [], []
    pool = make_pool(
        observer,
        on_readiness=readiness.append,
        on_loading=lambda worker_index, stage, fraction: loading.append((stage, fraction)),
    )
    pool.start()
    ready = await pool.first_ready()
    await observer.until(1)
    assert ready.info.name == "tiny-a"
    assert ("loading weights", 1.0) in loading
    first = observer.ready[0]
    os.kill(first.pid, signal.SIGKILL)
    await observer.until(0)
    await observer.until(1)
    assert observer.ready[0].pid != first.pid
    assert readiness == [1, 0, 1]
    await pool.stop()
    assert pool.n_ready == 0


async def test_a_worker_that_hangs_is_stopped_all_the_same():
    observer = Observer()
    pool = make_pool(observer)
    pool.start()
    await observer.until(1)
    os.kill(observer.ready[0].pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        await pool.stop()


async def test_what_cannot_be_loaded_is_said(tmp_path):
    pool = make_pool(Observer(), model=tmp_path / "nothing")
    pool.start()
    with pytest.raises(ModelNotFound):
        await pool.first_ready()
    await pool.stop()


@pytest.mark.parametrize(
    ("what_loading_does", "reason", "n_starts"),
    [
        ("raise KeyError('model.norm.weight')", "KeyError: 'model.norm.weight'", 1),
        ("raise MemoryError", "not enough memory", 1),
        ("class PanicException(BaseException): ...\nraise PanicException('a\\nb')", "PanicException: a b", 1),
        ("raise SystemExit(3)", "SystemExit: 3", 1),
        ("import os; os._exit(9)", "the worker ended with exit code 9 while starting", 1),
        ("import os; os.kill(os.getpid(), 9)", "3 workers in a row were killed (SIGKILL), as", 3),
        ("import os; os.kill(os.getpid(), 11)", "3 workers in a row crashed (Segmentation fault)", 3),
    ],
)
async def test_what_nobody_foresaw_is_said_as_well(
    tmp_path, monkeypatch, what_loading_does, reason, n_starts
):
    """The first library that loading imports does what files and machines make libraries do."""
    (tmp_path / "torch.py").write_text(
        f"open({str(tmp_path / 'starts')!r}, 'a').write('x')\n{what_loading_does}"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(pool_module, "FIRST_DELAY_SECONDS", 0.001)
    pool = make_pool(Observer())
    pool.start()
    with pytest.raises(ModelError, match=re.escape(f"{TINY_MODEL}: cannot be loaded: {reason}")) as failed:
        await pool.first_ready()
    assert "\n" not in failed.value.message
    await asyncio.sleep(0.05)  # no other is started when all is said
    await pool.stop()
    assert (tmp_path / "starts").read_text() == "x" * n_starts


async def test_another_model_is_not_mixed_in(tmp_path):
    """A folder that changed under a running server: the old answers and the new ones must not be mixed."""
    for file in TINY_MODEL.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    observer = Observer()
    pool = make_pool(observer, model=tmp_path)
    pool.start()
    await observer.until(1)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config + "\n")  # another digest
    os.kill(observer.ready[0].pid, signal.SIGKILL)
    await observer.until(0)
    async with asyncio.timeout(60):
        while pool.n_restarts < 2:  # noqa: ASYNC110 - the first was turned away, which nobody is told
            await asyncio.sleep(0.02)
    (tmp_path / "config.json").write_text(config)
    await observer.until(1)  # comes back once the folder is as it was
    await pool.stop()


async def test_a_worker_that_cannot_be_started_is_tried_for_as_long_as_it_takes(monkeypatch):
    """As when descriptors or processes are short. What was begun is undone."""
    monkeypatch.setattr(pool_module, "FIRST_DELAY_SECONDS", 0.001)
    observer = Observer()
    pool = make_pool(observer)
    pool.start()
    await observer.until(1)
    n_files, failures = n_open_files(), []

    def failing(*_, **__):
        failures.append(OSError(errno.EMFILE, "Too many open files"))
        raise failures[-1]

    with monkeypatch.context() as without_descriptors:
        without_descriptors.setattr(subprocess, "Popen", failing)
        os.kill(observer.ready[0].pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while len(failures) < 8:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert n_open_files() < n_files
    await observer.until(1)
    assert pool.n_restarts == 1
    await pool.stop()


async def test_a_fault_in_what_is_told_about_a_worker_costs_the_worker_and_no_more():
    observer, told = Observer(), []

    def failing_at_first(n_ready: int) -> None:
        told.append(n_ready)
        if len(told) == 1:
            raise ValueError("whatever")

    pool = make_pool(observer, on_readiness=failing_at_first)
    pool.start()
    async with asyncio.timeout(60):
        while told != [1, 0, 1]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert pool.n_ready == len(observer.ready) == 1
    await pool.stop()


async def test_a_fault_while_one_worker_is_looked_after_leaves_the_others_looked_after(monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.001)
    pool, looks = make_pool(Observer(), n_workers=2), []

    def look(slot, elapsed_seconds):
        looks.append(slot)
        if len(looks) in (1, 4):
            raise ValueError("whatever")

    monkeypatch.setattr(pool_module._Slot, "start", lambda slot: None)
    monkeypatch.setattr(pool_module._Slot, "kill_if_hung", look)
    pool.start()
    async with asyncio.timeout(30):
        while len(looks) < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await pool.stop()
    assert looks[:8] == [*pool._slots] * 4


async def test_a_worker_that_nobody_can_say_why_it_died_is_replaced_too(monkeypatch):
    observer = Observer()
    pool = make_pool(observer)
    pool.start()
    await observer.until(1)

    def failing(*_):
        raise ValueError("whatever")

    with monkeypatch.context() as broken:
        broken.setattr(pool_module._Slot, "_is_hopeless", failing)
        os.kill(observer.ready[0].pid, signal.SIGKILL)
        await observer.until(0)
    await observer.until(1)
    await pool.stop()


@pytest.mark.parametrize(("name", "turn"), [("_on_exit", 1), ("start", 2)])
async def test_a_fault_in_the_place_of_a_worker_costs_no_worker(monkeypatch, name, turn):
    """At the entry of what is to have another one started: it is tried again."""
    monkeypatch.setattr(callbacks_module, "RETRY_SECONDS", 0.01)
    method, calls = getattr(pool_module._Slot, name), []

    def failing_once(*arguments):
        calls.append(name)
        if len(calls) == turn:
            raise ValueError("whatever")
        method(*arguments)

    monkeypatch.setattr(pool_module._Slot, name, failing_once)
    observer = Observer()
    pool = make_pool(observer)
    pool.start()
    await observer.until(1)
    os.kill(observer.ready[0].pid, signal.SIGKILL)
    await observer.until(0)
    await observer.until(1)
    assert len(calls) == turn + 1
    assert pool.n_restarts == 1
    await pool.stop()

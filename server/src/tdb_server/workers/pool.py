"""Workers on this machine: started together, and replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from tdb_server.errors import ModelError, TdbError
from tdb_server.pool_settings import WorkerCare
from tdb_server.workers.callbacks import guarded, keep_trying
from tdb_server.workers.liveness import LOOK_SECONDS, Liveness
from tdb_server.workers.messages import (
    BatchEnded,
    CallProgress,
    CancelCall,
    Configuration,
    FromWorker,
    LoadingFailed,
    LoadingProgress,
    Ready,
    RunBatch,
)
from tdb_server.workers.process import WorkerProcess

_log = logging.getLogger(__name__)
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 30.0
MAX_CRASHES_WHILE_LOADING = 3
"""Where none was ever ready, none is started after so many that a signal ended: memory may be short for a
moment only."""


class Worker(Protocol):
    """What the scheduler needs of a worker, wherever it runs.

    Attributes:
        device: where it computes, as torch names it.
    """

    device: str

    def send(self, message: RunBatch | CancelCall) -> None:
        """Hands over work, or takes it back."""

    def kill(self) -> None:
        """Ends a worker that does not listen any more."""


class PoolObserver(Protocol):
    """Hears, on the event loop, what becomes of the workers."""

    def worker_is_ready(self, worker: Worker) -> None:
        """A worker can take its first batch."""

    def worker_said(
        self, worker: Worker, message: CallProgress | BatchEnded, n_bytes: int
    ) -> asyncio.Future[None] | None:
        """Something of a batch has come, `n_bytes` long.

        Returns:
            Done when this takes no memory any more; to be waited for before many more messages follow. None
            where there is nothing to wait for.
        """

    def worker_is_gone(self, worker: Worker) -> None:
        """A worker that was ready has died, with whatever it was doing."""


class Pool(ABC):
    """Workers, wherever they run, started together and replaced when they die.

    Args:
        observer: the scheduler.
        on_readiness: called with the number of ready workers whenever it changes.
        on_loading: called with a worker's index, a stage and a fraction while it loads.

    Attributes:
        n_ready: workers that can compute.
        n_restarts: workers in place of dead ones.
    """

    def __init__(
        self,
        observer: PoolObserver,
        on_readiness: Callable[[int], None],
        on_loading: Callable[[int, str, float], None],
    ) -> None:
        self.observer = observer
        self.on_loading = on_loading
        self._on_readiness = on_readiness
        self.n_ready = self.n_restarts = 0
        self._first_ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._first_ready.add_done_callback(lambda done: done.cancelled() or done.exception())

    def set_ready(self, n_ready: int) -> None:
        """Notes how many workers can compute, and calls `on_readiness`."""
        self.n_ready = n_ready
        self._on_readiness(n_ready)

    @abstractmethod
    def start(self) -> None:
        """Starts all workers and returns at once."""

    async def first_ready(self) -> Ready:
        """Waits for the first worker.

        Raises:
            TdbError: there will be none: the model cannot be loaded, or nothing to run workers on is there.
        """
        return await asyncio.shield(self._first_ready)

    @abstractmethod
    async def stop(self) -> None:
        """Lets go of all workers, and waits until those of this machine are gone."""


class LocalPool(Pool):
    """One worker process per configuration.

    Args:
        configurations: what each worker loads, and where.
        care: when a worker counts as hung, and is replaced. The other arguments are those of every pool.
    """

    def __init__(
        self,
        configurations: Sequence[Configuration],
        observer: PoolObserver,
        on_readiness: Callable[[int], None],
        on_loading: Callable[[int, str, float], None],
        care: WorkerCare,
    ) -> None:
        super().__init__(observer, on_readiness, on_loading)
        self.care = care
        self._watching: asyncio.Task[None] | None = None
        self._slots = [_Slot(self, configuration) for configuration in configurations]
        self.weights_file = os.memfd_create("tdb-weights") if hasattr(os, "memfd_create") else None
        """Where workers on a CPU share weights; gone with the last process that has it open."""

    def start(self) -> None:
        """Starts all workers and returns at once."""
        for slot in self._slots:
            slot.start()
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends all workers and waits until they are gone."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(slot.stop() for slot in self._slots))
        if self.weights_file is not None:
            os.close(self.weights_file)
            self.weights_file = None

    def accept(self, ready: Ready) -> bool:
        """Whether a worker that says it is ready holds the same model as those before it."""
        if not self._first_ready.done():
            self._first_ready.set_result(ready)
        return self._first_ready.exception() is None and self._first_ready.result().info == ready.info

    def give_up(self, error: TdbError) -> bool:
        """Notes that loading failed. True when that is final: no worker has ever been ready."""
        if not self._first_ready.done():
            self._first_ready.set_exception(error)
        return self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether no worker will ever be ready."""
        return self._first_ready.done() and self._first_ready.exception() is not None

    async def _watch(self) -> None:
        """Looks after the workers, for as long as the pool lives."""
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for slot in self._slots:
                try:
                    slot.kill_if_hung(now - looked_at)
                except Exception:  # the others are looked after, and this one at the next look
                    _log.exception("a worker cannot be looked after")
            looked_at = now

    def count_ready(self) -> None:
        """A worker has become ready, or was."""
        self.set_ready(sum(slot.is_ready for slot in self._slots))


class _Slot:
    """The place of one worker: a process, then its successor, and so on."""

    def __init__(self, pool: LocalPool, configuration: Configuration) -> None:
        self._pool = pool
        self._configuration = configuration
        self._process: WorkerProcess | None = None
        self._liveness = Liveness(pool.care)
        self._fault: str | None = None  # why it was ended
        self._restart: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._gone.set()
        self._is_stopping = False
        self._n_deaths = 0  # since it was last ready
        self._stage = "starting"
        self.is_ready = False
        self._has_started = False

    def start(self) -> None:
        self._restart = None
        self._stage = "starting"
        self._process = None
        self._liveness, self._fault = Liveness(self._pool.care), None
        try:
            self._process = WorkerProcess(
                self._configuration, self._pool.weights_file, self._on_message, self._on_exit
            )
        except Exception as error:
            self._not_started(error)
        else:
            self._pool.n_restarts += self._has_started
            self._has_started = True
            self._gone.clear()

    def _not_started(self, error: Exception) -> None:
        """Descriptors, processes or memory are short, which may pass: it is tried for as long as it takes."""
        self._n_deaths += 1
        if self._n_deaths >= MAX_CRASHES_WHILE_LOADING and self._pool.give_up(
            ModelError(f"{self._configuration.model_name}: no worker can be started: {error}")
        ):
            return
        delay_seconds = self._start_later()
        _log.error("a worker cannot be started: %s; tried again in %.1f s", error, delay_seconds)

    def _start_later(self) -> float:
        """Waits twice as long after each death, and returns how long."""
        delay_seconds: float = min(FIRST_DELAY_SECONDS * 2 ** (self._n_deaths - 1), LONGEST_DELAY_SECONDS)
        self._restart = asyncio.get_running_loop().call_later(
            delay_seconds, guarded(self.start, self._not_started)
        )
        return delay_seconds

    async def stop(self) -> None:
        self._is_stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if self._process is not None:
            self._process.end()
            try:
                await asyncio.wait_for(self._gone.wait(), timeout=2.0)
            except TimeoutError:
                self._process.kill()
                await self._gone.wait()

    def kill_if_hung(self, elapsed_seconds: float) -> None:
        """Ends a worker that does not do what it should; its exit is what has it replaced."""
        if self._process is None or self._gone.is_set():
            return
        on_cpu = self._process.device == "cpu"
        fault = self._liveness.fault(self._process.look(), elapsed_seconds, on_cpu=on_cpu)
        if fault is not None:
            _log.error("worker %d %s; it is replaced", self._process.pid, fault)
            self._fault = fault
            self._process.kill()

    def _on_message(
        self, process: WorkerProcess, message: FromWorker, n_bytes: int
    ) -> asyncio.Future[None] | None:
        match message:
            case CallProgress() | BatchEnded():
                if self.is_ready:
                    return self._pool.observer.worker_said(process, message, n_bytes)
            case LoadingProgress(stage, fraction):
                self._stage = stage
                self._pool.on_loading(self._configuration.worker_index, stage, fraction)
            case Ready():
                self._on_ready(process, message)
            case LoadingFailed(error):
                if not self._pool.give_up(error):
                    _log.error("worker %d cannot load the model any more: %s", process.pid, error.message)
        return None

    def _on_ready(self, process: WorkerProcess, ready: Ready) -> None:
        if not self._pool.accept(ready):
            _log.error("worker %d found another model than the one being served", process.pid)
            process.end()
            return
        _log.info("worker %d is ready on %s", process.pid, ready.device)
        self._n_deaths = 0
        process.device = ready.device
        self.is_ready = True
        self._pool.observer.worker_is_ready(process)
        self._pool.count_ready()

    def _on_exit(self, process: WorkerProcess, exit_code: int) -> None:
        self._gone.set()
        if self.is_ready:
            self.is_ready = False
            what = f"that worker {process.pid} is gone cannot be told"
            for tell in (partial(self._pool.observer.worker_is_gone, process), self._pool.count_ready):
                keep_trying(tell, what)
        if self._is_stopping or self._pool.has_failed:
            return
        self._n_deaths += 1
        try:
            if self._is_hopeless(exit_code) and self._pool.give_up(self._loading_error(exit_code)):
                return
        except Exception:
            _log.exception("why worker %d has died cannot be told", process.pid)
        delay_seconds = self._start_later()
        _log.warning(
            "worker %d has died with exit code %d; the next starts in %.1f s",
            process.pid,
            exit_code,
            delay_seconds,
        )

    def _is_hopeless(self, exit_code: int) -> bool:
        """Whether another start would end the same. A process that ends by itself always does so."""
        return exit_code >= 0 or self._n_deaths >= MAX_CRASHES_WHILE_LOADING

    def _loading_error(self, exit_code: int) -> ModelError:
        if self._fault is not None:
            how = f"{self._n_deaths} workers in a row hung or died; the last one {self._fault}"
        elif exit_code >= 0:
            how = f"the worker ended with exit code {exit_code}"
        elif exit_code == -signal.SIGKILL:
            how = (
                f"{self._n_deaths} workers in a row were killed (SIGKILL), as systems do when memory runs "
                "out; the last one"
            )
        else:
            how = f"{self._n_deaths} workers in a row crashed ({signal.strsignal(-exit_code)}); the last one"
        return ModelError(f"{self._configuration.model_name}: cannot be loaded: {how} while {self._stage}")

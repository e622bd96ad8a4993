"""Workers as replicas of a Ray Serve application, on one machine or many.

Ray Serve starts the replicas, watches them, replaces them and says how many there should be. To the scheduler
they look like workers of this machine, as many as can be busy; each batch goes to whichever replica Ray
Serve picks.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tdb_server.errors import ModelError, TdbError, Unavailable
from tdb_server.pool_settings import RayPoolSettings
from tdb_server.workers import ray_application
from tdb_server.workers.callbacks import keep_trying
from tdb_server.workers.messages import Configuration, Ready
from tdb_server.workers.pool import Pool, PoolObserver
from tdb_server.workers.ray_application import State
from tdb_server.workers.ray_worker import RayWorker

_log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
Answer = TypeVar("Answer")


class RayPool(Pool):
    """As many workers as Ray Serve has replicas, and under load a few more, whose batches make it add some.

    Args:
        settings: which cluster, and how many replicas.
        configuration: what each replica loads. The other arguments are those of every pool.
    """

    def __init__(
        self,
        settings: RayPoolSettings,
        configuration: Configuration,
        observer: PoolObserver,
        on_readiness: Callable[[int], None],
        on_loading: Callable[[int, str, float], None],
    ) -> None:
        super().__init__(observer, on_readiness, on_loading)
        self._settings = settings
        self._configuration = _from_any_folder(configuration)
        # Ray's processes end with the thread that started them, so one thread asks for everything.
        self._thread = ThreadPoolExecutor(1, "ray")
        self._keeping: asyncio.Task[None] | None = None
        self._make_worker: Callable[[], RayWorker] | None = None
        self._workers: list[RayWorker] = []

    def start(self) -> None:
        """Joins or starts Ray, deploys, and returns at once."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Leaves the cluster, in which the application goes on; a Ray that was started here ends."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait((self._keeping,))
        for worker in self._workers:
            worker.retire()
        await self._ask(ray_application.disconnect)
        self._thread.shutdown()

    async def _keep(self) -> None:
        try:
            ready, state = await self._begin()
        except TdbError as error:
            self._first_ready.set_exception(error)
            return
        except Exception as error:  # of Ray, or of what a replica sent: else everybody would wait for ever
            reason = ray_application.reason(str(error)) or type(error).__name__
            self._first_ready.set_exception(Unavailable(f"Ray fails: {reason}", "NO_WORKER_READY"))
            return
        self._first_ready.set_result(ready)
        while True:
            try:
                self._adapt(state)
            except Exception:
                _log.exception("the workers cannot be made to fit the replicas; tried again")
            await asyncio.sleep(POLL_SECONDS)
            state = await self._state()

    async def _begin(self) -> tuple[Ready, State]:
        """Starts everything and waits for the first replica."""
        settings, configuration = self._settings, self._configuration
        self.on_loading(0, "starting Ray", 0.0)
        await self._ask(partial(ray_application.connect, settings, configuration.n_threads))
        self.on_loading(0, "starting replicas", 0.0)
        handle = await self._ask(partial(ray_application.deploy, settings, configuration))
        while not (state := await self._ask(partial(ray_application.state, settings))).n_running:
            if state.failure is not None:
                raise ModelError(_naming(configuration.model_name, state.failure))
            await asyncio.sleep(POLL_SECONDS)
        ready = await self._ask(partial(ray_application.describe, handle, configuration))
        self.on_loading(0, "starting replicas", 1.0)
        front = uuid.uuid4().hex
        self._make_worker = partial(
            RayWorker, handle, front, ready.info.digest, ready.device, self.observer, self._on_loss
        )
        return ready, state

    async def _state(self) -> State:
        try:
            return await self._ask(partial(ray_application.state, self._settings))
        except Exception as error:
            return State(0, f"Ray does not answer: {ray_application.reason(str(error))}")

    def _adapt(self, state: State) -> None:
        """Makes workers fit the replicas that run."""
        if state.n_running != self.n_ready:
            level = logging.INFO if state.n_running else logging.WARNING
            _log.log(level, "%d replicas run; %s", state.n_running, state.failure or "no failure")
            self.set_ready(state.n_running)
        # One for each replica, twice as many while there may be more: what waits at Ray is load.
        n_wanted = max(state.n_running, min(2 * state.n_running, self._settings.max_replicas))
        while self._make_worker is not None and len(self._workers) < n_wanted:
            worker = self._make_worker()
            self._workers.append(worker)
            self.observer.worker_is_ready(worker)
        free = [worker for worker in self._workers if worker.is_free]
        for worker in free[: max(0, len(self._workers) - n_wanted)]:
            worker.retire()
            self._remove(worker)

    def _on_loss(self, worker: RayWorker) -> None:
        self.n_restarts += 1  # Ray Serve replaces the replica
        self._remove(worker)

    def _remove(self, worker: RayWorker) -> None:
        self._workers.remove(worker)
        keep_trying(partial(self.observer.worker_is_gone, worker), "that a replica is gone cannot be told")

    async def _ask(self, question: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._thread, question)


def _naming(model: str, failure: str) -> str:
    """Why a model cannot be loaded, with its name also where Ray says it: of replicas that were killed."""
    return failure if model in failure else f"{model}: cannot be loaded: {failure}"


def _from_any_folder(configuration: Configuration) -> Configuration:
    """With whole paths, as replicas run in a folder of Ray's. Names on the hub stay as they are."""
    model = configuration.model
    if model is not None and Path(model).exists():
        model = str(Path(model).resolve())
    autoencoders = tuple(one.resolve() if one.exists() else one for one in configuration.autoencoders)
    return replace(configuration, model=model, autoencoders=autoencoders)

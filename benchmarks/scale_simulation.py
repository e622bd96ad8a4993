"""A cluster of fronts and workers, call by call, in a time of its own: what latency to expect under a load.

Calls come at random moments. A balancer gives them to the fronts in turn. In a front they first wait for its
one thread, then for a worker, and run in batches as `tdb_server.workers.scheduler` makes them: the calls that
wait are shared out among the free workers, the one that has worked least first, and a worker that has just
been busy waits a moment for as much company as it had before. All calls are of one kind, so what fits into a
batch is a number of calls. Workers and fronts die now and then: a worker's calls run again, each alone; a
front's are repeated by its callers.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scale_cluster import Cluster, Figures, Outcome, moments


@dataclass(eq=False)
class _Call:
    came_at: float
    runs_alone: bool = False


@dataclass(eq=False)
class _Worker:
    batch: list[_Call] = field(default_factory=list)
    batch_number: int = 0
    is_up: bool = True
    busy_seconds: float = 0.0
    changed_at: float = -math.inf
    n_expected: int = 0
    most_active: int = 0


@dataclass(eq=False)
class _Front:
    workers: list[_Worker]
    queue: deque[_Call] = field(default_factory=deque)
    arriving: set[_Call] = field(default_factory=set)
    is_up: bool = True
    thread_free_at: float = 0.0
    wakes_at: float = math.inf


class Simulation:
    """One run.

    Args:
        figures: of a worker and a front.
        cluster: what there is.
        calls_per_second: of all callers together.
        seed: of the moments at which calls come.
        spread_seed: of how long each batch takes, and of deaths.
    """

    def __init__(
        self,
        figures: Figures,
        cluster: Cluster,
        calls_per_second: float,
        seed: int = 0,
        spread_seed: int = 0,
    ) -> None:
        self._figures, self._cluster = figures, cluster
        self._moments = moments(calls_per_second, seed)
        self._random = random.Random(spread_seed)
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._fronts = [
            _Front([_Worker() for _ in range(cluster.n_workers)]) for _ in range(cluster.n_fronts)
        ]
        self._turn = 0
        self._latencies: list[float] = []
        self._n_refused = self._n_batches = self._n_batched = 0

    def run(self, n_calls: int, warm_up: float = 0.1) -> Outcome:
        """Lets so many calls come, and leaves out the first share of them."""
        for came_at in itertools.islice(self._moments, n_calls):
            self._at(came_at, self._arrives(_Call(came_at)))
        for front in self._fronts:
            self._later_dies(front, self._cluster.front_life, self._front_dies(front))
            for worker in front.workers:
                self._later_dies(worker, self._cluster.worker_life, self._worker_dies(front, worker))
        n_open = n_calls
        while self._events and len(self._latencies) + self._n_refused < n_open:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        busy = sum(worker.busy_seconds for front in self._fronts for worker in front.workers)
        n_workers = self._cluster.n_fronts * self._cluster.n_workers
        return Outcome(
            np.array(self._latencies[int(warm_up * n_calls) :]),
            self._n_refused,
            busy / (self._now * n_workers),
            self._n_batched / max(1, self._n_batches),
        )

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), happen))

    def _arrives(self, call: _Call) -> Callable[[], None]:
        def happen() -> None:
            front = self._next_front()
            if front is None:
                self._n_refused += 1
                return
            front.arriving.add(call)
            front.thread_free_at = max(front.thread_free_at, self._now) + self._figures.front
            self._at(front.thread_free_at, lambda: self._is_queued(front, call))

        return happen

    def _next_front(self) -> _Front | None:
        """The next in turn that is there."""
        for _ in self._fronts:
            self._turn = (self._turn + 1) % len(self._fronts)
            front = self._fronts[self._turn]
            if front.is_up and any(worker.is_up for worker in front.workers):
                return front
        return None

    def _is_queued(self, front: _Front, call: _Call) -> None:
        if call not in front.arriving:
            return  # its front has died
        front.arriving.discard(call)
        if len(front.queue) >= self._cluster.max_queue:
            self._n_refused += 1
            return
        front.queue.append(call)
        self._dispatch(front)
        _count_active(front)

    def _dispatch(self, front: _Front) -> None:
        free = [worker for worker in front.workers if worker.is_up and not worker.batch]
        free.sort(key=lambda worker: worker.busy_seconds)
        for n_before, worker in enumerate(free):
            if not front.queue:
                return
            share = math.ceil(len(front.queue) / (len(free) - n_before))
            starts_at = worker.changed_at + self._cluster.max_wait if share < worker.n_expected else 0.0
            if starts_at > self._now:
                self._wake(front, starts_at)
                continue
            self._start(front, worker, share)

    def _wake(self, front: _Front, time: float) -> None:
        if front.wakes_at == math.inf:
            front.wakes_at = time

            def happen() -> None:
                front.wakes_at = math.inf
                self._dispatch(front)

            self._at(time, happen)

    def _start(self, front: _Front, worker: _Worker, share: int) -> None:
        limit = min(share, self._cluster.max_batch_calls)
        batch = [front.queue.popleft()]
        while front.queue and len(batch) < limit and not (batch[0].runs_alone or front.queue[0].runs_alone):
            batch.append(front.queue.popleft())
        worker.batch, worker.changed_at = batch, self._now
        worker.batch_number += 1
        self._n_batches += 1
        self._n_batched += len(batch)
        mean, spread = self._figures.batch_seconds(len(batch)), self._figures.spread
        sigma = math.sqrt(math.log1p(spread**2))
        seconds = mean * math.exp(self._random.gauss(-0.5 * sigma**2, sigma))
        number = worker.batch_number
        self._at(self._now + seconds, lambda: self._ends(front, worker, number))
        _count_active(front)

    def _ends(self, front: _Front, worker: _Worker, number: int) -> None:
        if number != worker.batch_number or not worker.batch:
            return  # the worker has died
        for call in worker.batch:
            self._latencies.append(self._now - call.came_at + self._figures.around)
        self._is_free(front, worker)
        self._dispatch(front)

    def _is_free(self, front: _Front, worker: _Worker) -> None:
        n_up = max(1, sum(one.is_up for one in front.workers))
        worker.busy_seconds += self._now - worker.changed_at
        worker.n_expected, worker.most_active = math.ceil(worker.most_active / n_up), 0
        worker.batch, worker.changed_at = [], self._now

    def _later_dies(self, what: object, life: float, dies: Callable[[], None]) -> None:
        if life < math.inf:
            self._at(self._now + self._random.expovariate(1 / life), dies)

    def _worker_dies(self, front: _Front, worker: _Worker) -> Callable[[], None]:
        def happen() -> None:
            if worker.is_up and front.is_up:
                for call in reversed(worker.batch):
                    call.runs_alone = True
                    front.queue.appendleft(call)
                worker.is_up = False
                self._is_free(front, worker)
                self._at(self._now + self._cluster.restart, lambda: self._is_back(front, worker))
                self._dispatch(front)
            self._later_dies(worker, self._cluster.worker_life, happen)

        return happen

    def _is_back(self, front: _Front, worker: _Worker) -> None:
        worker.is_up, worker.changed_at, worker.n_expected = True, self._now, 0
        self._dispatch(front)

    def _front_dies(self, front: _Front) -> Callable[[], None]:
        def happen() -> None:
            if front.is_up:
                front.is_up = False
                lost = [*front.arriving, *front.queue, *(c for one in front.workers for c in one.batch)]
                front.arriving.clear()
                front.queue.clear()
                for worker in front.workers:
                    if worker.batch:
                        self._is_free(front, worker)
                for call in lost:
                    self._at(self._now + self._cluster.repeat, self._arrives(call))
                self._at(self._now + self._cluster.restart, lambda: self._front_is_back(front))
            self._later_dies(front, self._cluster.front_life, happen)

        return happen

    def _front_is_back(self, front: _Front) -> None:
        front.is_up, front.thread_free_at = True, self._now
        for worker in front.workers:
            worker.is_up, worker.changed_at, worker.n_expected = True, self._now, 0


def _count_active(front: _Front) -> None:
    n_active = len(front.queue) + sum(len(worker.batch) for worker in front.workers)
    for worker in front.workers:
        worker.most_active = max(worker.most_active, n_active)

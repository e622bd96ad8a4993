"""A cluster of fronts and workers, call by call, in a time of its own: what latency to expect under a load.

A balancer gives calls to the fronts in turn. What a front has to do takes turns, for Python runs one thread
at a time: taking calls in, handing batches over, reading what workers send while they go on, hearing that
one is done, sending answers out. Calls wait for a worker and run in batches as
`tdb_server.workers.scheduler` makes them: those that wait are shared out among the free workers, the one that
has worked least first, and a worker that has just been busy waits a moment for as much company as it had
before. In a batch all calls go through the model together, and then get their answers one after the other.
All calls are of one kind and of equal callers, so turns are those of arrival, and what fits into a batch is a
number of calls. Workers and fronts die now and then: a worker's calls run again, each alone; a front's are
repeated by their callers.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.scale_clock import Clock, Happening
from benchmarks.scale_cluster import Cluster, Figures, Outcome
from benchmarks.scale_process import Process


@dataclass(eq=False)
class _Call:
    came_at: float
    runs_alone: bool = False


@dataclass(eq=False)
class _Worker:
    """`batch_number` tells what belongs to a batch that is over or was lost with the worker."""

    process: Process
    batch: list[_Call] = field(default_factory=list)
    n_done: int = 0
    batch_number: int = 0
    is_up: bool = True
    busy_seconds: float = 0.0
    changed_at: float = -math.inf
    n_expected: int = 0
    most_active: int = 0


@dataclass(eq=False)
class _Front:
    process: Process
    workers: list[_Worker]
    queue: deque[_Call] = field(default_factory=deque)
    open_calls: set[_Call] = field(default_factory=set)
    is_up: bool = True
    wakes_at: float = math.inf


class Simulation:
    """One run.

    Args:
        figures: of a worker and a front.
        cluster: what there is.
        coming: when calls come, in seconds.
        seed: of on which core each process is when, and of deaths.
    """

    def __init__(self, figures: Figures, cluster: Cluster, coming: Sequence[float], seed: int = 0) -> None:
        self._figures, self._cluster, self._coming = figures, cluster, coming
        self._random = random.Random(seed)
        self._clock = Clock(cluster.n_cores)
        self._fronts = [
            _Front(self._process(), [_Worker(self._process()) for _ in range(cluster.n_workers)])
            for _ in range(cluster.n_fronts)
        ]
        self._turn = 0
        self._latencies: list[float] = []
        self._n_refused = self._n_batches = self._n_batched = 0

    def run(self, warm_up: float = 0.1) -> Outcome:
        """Plays until every call is answered or refused, and leaves out the first share of the answers."""
        for came_at in self._coming:
            self._clock.at(came_at, self._arrives(_Call(came_at)))
        for front in self._fronts:
            self._later_dies(self._cluster.front_life, self._front_dies(front))
            for worker in front.workers:
                self._later_dies(self._cluster.worker_life, self._worker_dies(front, worker))
        while len(self._latencies) + self._n_refused < len(self._coming):
            self._clock.step()
        busy = sum(worker.busy_seconds for front in self._fronts for worker in front.workers)
        n_workers = self._cluster.n_fronts * self._cluster.n_workers
        return Outcome(
            np.array(self._latencies[int(warm_up * len(self._coming)) :]),
            self._n_refused,
            busy / (self._clock.now * n_workers),
            self._n_batched / max(1, self._n_batches),
        )

    def _process(self) -> Process:
        return Process(self._clock, self._cluster.slowness, self._random)

    def _arrives(self, call: _Call) -> Happening:
        def happen() -> None:
            front = self._next_front()
            if front is None or len(front.queue) >= self._cluster.max_queue:
                self._n_refused += 1
                return
            front.open_calls.add(call)
            front.process.take_turns(self._figures.front_before, lambda: self._is_queued(front, call))

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
            if starts_at > self._clock.now:
                self._wake(front, starts_at)
                continue
            self._start(front, worker, share)

    def _wake(self, front: _Front, moment: float) -> None:
        if front.wakes_at == math.inf:
            front.wakes_at = moment

            def happen() -> None:
                front.wakes_at = math.inf
                front.process.take_turns(0.0, lambda: self._dispatch(front))

            self._clock.at(moment, happen)

    def _start(self, front: _Front, worker: _Worker, share: int) -> None:
        limit = min(share, self._cluster.max_batch_calls)
        batch = [front.queue.popleft()]
        while front.queue and len(batch) < limit and not (batch[0].runs_alone or front.queue[0].runs_alone):
            batch.append(front.queue.popleft())
        worker.batch, worker.n_done, worker.changed_at = batch, 0, self._clock.now
        worker.batch_number += 1
        self._n_batches += 1
        self._n_batched += len(batch)
        number = worker.batch_number
        front.process.take_turns(0.0, lambda: self._is_handed_over(front, worker, number))
        _count_active(front)

    def _is_handed_over(self, front: _Front, worker: _Worker, number: int) -> None:
        def begins() -> None:
            if worker.batch_number == number:
                shared = self._figures.shared_seconds(len(worker.batch))
                worker.process.compute(shared, lambda: self._makes_answer(front, worker))

        self._clock.at(self._clock.now + self._figures.elsewhere, begins)

    def _makes_answer(self, front: _Front, worker: _Worker) -> None:
        """The next one. Halfway, as a mean, the front reads what there is of it."""
        half = self._figures.own / 2

        def halfway() -> None:
            front.process.take_turns(self._figures.front_reading, lambda: None)
            worker.process.compute(half, lambda: self._answered(front, worker))

        worker.process.compute(half, halfway)

    def _answered(self, front: _Front, worker: _Worker) -> None:
        call, number = worker.batch[worker.n_done], worker.batch_number
        worker.n_done += 1
        front.process.take_turns(self._figures.front_after, lambda: self._leaves(front, call))
        if worker.n_done < len(worker.batch):
            self._makes_answer(front, worker)
        else:
            front.process.take_turns(0.0, lambda: self._batch_ended(front, worker, number))

    def _leaves(self, front: _Front, call: _Call) -> None:
        front.open_calls.discard(call)

        def is_read() -> None:
            self._latencies.append(self._clock.now - call.came_at)

        self._clock.compute(self._figures.caller, is_read)

    def _batch_ended(self, front: _Front, worker: _Worker, number: int) -> None:
        if worker.batch_number == number:
            self._is_free(front, worker)
            self._dispatch(front)

    def _is_free(self, front: _Front, worker: _Worker) -> None:
        n_up = max(1, sum(one.is_up for one in front.workers))
        worker.busy_seconds += self._clock.now - worker.changed_at
        worker.n_expected, worker.most_active = math.ceil(worker.most_active / n_up), 0
        worker.batch, worker.n_done, worker.changed_at = [], 0, self._clock.now
        worker.batch_number += 1

    def _later_dies(self, life: float, dies: Happening) -> None:
        if life < math.inf:
            self._clock.at(self._clock.now + self._random.expovariate(1 / life), dies)

    def _worker_dies(self, front: _Front, worker: _Worker) -> Happening:
        def happen() -> None:
            if worker.is_up and front.is_up:
                for call in reversed(worker.batch[worker.n_done :]):
                    call.runs_alone = True
                    front.queue.appendleft(call)
                worker.is_up = False
                worker.process.die()
                self._is_free(front, worker)
                self._clock.at(self._clock.now + self._cluster.restart, lambda: self._is_back(front, worker))
                self._dispatch(front)
            self._later_dies(self._cluster.worker_life, happen)

        return happen

    def _is_back(self, front: _Front, worker: _Worker) -> None:
        worker.is_up, worker.changed_at, worker.n_expected = True, self._clock.now, 0
        self._dispatch(front)

    def _front_dies(self, front: _Front) -> Happening:
        def happen() -> None:
            if front.is_up:
                front.is_up = False
                front.process.die()
                lost = [*front.open_calls]
                front.open_calls.clear()
                front.queue.clear()
                for worker in front.workers:
                    worker.process.die()
                    if worker.batch:
                        self._is_free(front, worker)
                for call in sorted(lost, key=lambda call: call.came_at):
                    self._clock.at(self._clock.now + self._cluster.repeat, self._arrives(call))
                self._clock.at(self._clock.now + self._cluster.restart, lambda: self._front_is_back(front))
            self._later_dies(self._cluster.front_life, happen)

        return happen

    def _front_is_back(self, front: _Front) -> None:
        front.is_up = True
        for worker in front.workers:
            worker.is_up, worker.changed_at, worker.n_expected = True, self._clock.now, 0


def _count_active(front: _Front) -> None:
    n_active = len(front.queue) + sum(len(worker.batch) - worker.n_done for worker in front.workers)
    for worker in front.workers:
        worker.most_active = max(worker.most_active, n_active)

"""Calls without content, and workers that do what the test tells them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from tdb_server.domain.budget import Budget
from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.priority import Priority
from tdb_server.domain.requests import InferenceSpec, InferenceSubRequest
from tdb_server.domain.results import CallEvent, Finished, ObjectiveValues
from tdb_server.workers.device_time import Pace
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.messages import BatchEnded, CallProgress, CancelCall, RunBatch
from tdb_server.workers.scheduler import Scheduler
from tdb_server.workers.ticket import Terms, Ticket

call_ids = itertools.count()


def make_call(n_tokens: int = 4, n_rows: int = 1) -> Call:
    sub_request = InferenceSubRequest(InferenceSpec(token_ids=(0,) * n_tokens))
    return Call(str(next(call_ids)), (sub_request,) * n_rows)


def make_cost(activation_bytes: int = 100) -> Cost:
    return Cost(activation_bytes, response_bytes=0, least_response_bytes=0)


def make_buffer(max_bytes: int = 1000) -> EventBuffer[Any]:
    """Of a server that has as much memory and disk as is wanted."""
    memory, disk = Budget(10**9, "memory", "BUFFERS_FULL"), Budget(10**9, "disk", "NO_ROOM_FOR_ANSWER")
    return EventBuffer(max_bytes, memory, disk, "caller")


def make_ticket(
    caller: str | Caller = "anyone",
    n_tokens: int = 4,
    n_rows: int = 1,
    priority: Priority = Priority.INTERACTIVE,
    cost: Cost | None = None,
    **fields: object,
) -> Ticket:
    terms = Terms(Caller(caller) if isinstance(caller, str) else caller, priority=priority)
    return Ticket(make_call(n_tokens, n_rows), cost or make_cost(), terms, make_buffer(), **fields)


def make_pace(seconds_per_byte: float = 1e-9) -> Pace:
    """Of a worker that has done a lot."""
    pace = Pace()
    pace.saw(1e15, 1e15 * seconds_per_byte)
    return pace


@dataclass(eq=False)
class FakeWorker:
    """Keeps what it is told; answers when the test says so."""

    scheduler: Scheduler
    device: str = "cpu"
    batches: list[RunBatch] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    is_killed: bool = False

    def send(self, message: RunBatch | CancelCall) -> None:
        if isinstance(message, RunBatch):
            self.batches.append(message)
        else:
            self.cancelled.append(message.call_id)

    def kill(self) -> None:
        self.is_killed = True

    @property
    def n_calls(self) -> list[int]:
        """Calls of each batch so far."""
        return [len(batch.calls) for batch in self.batches]

    def say(self, call: Call, event: CallEvent) -> None:
        self.scheduler.worker_said(self, CallProgress(call.call_id, event), n_bytes=10)

    def end(self, failure: object = None) -> None:
        """The current batch is over."""
        self.scheduler.worker_said(self, BatchEnded(self.batches[-1].batch_id, failure), n_bytes=10)

    def answer(self) -> None:
        """All calls of the current batch go well."""
        for call in self.batches[-1].calls:
            self.say(call, ObjectiveValues(0, 1.5, None))
            self.say(call, Finished())
        self.end()

    def die(self) -> None:
        self.scheduler.worker_is_gone(self)


@pytest.fixture
def make_worker() -> Callable[[Scheduler], FakeWorker]:
    def make(scheduler: Scheduler) -> FakeWorker:
        worker = FakeWorker(scheduler)
        scheduler.worker_is_ready(worker)
        return worker

    return make

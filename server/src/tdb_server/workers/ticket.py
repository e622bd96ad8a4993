"""A call on its way through the scheduler: from the queue to a worker and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tdb_server.domain.call import Call
from tdb_server.domain.caller import Caller
from tdb_server.domain.cost import Cost
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.number_blocks import too_many_numbers
from tdb_server.domain.priority import Priority
from tdb_server.domain.requests import InferenceSubRequest
from tdb_server.domain.results import CallEvent, Finished
from tdb_server.errors import ResponseTooLarge
from tdb_server.workers.device_time import device_work
from tdb_server.workers.event_buffer import EventBuffer
from tdb_server.workers.result_cache import CacheKey, Recording

EVENT_BYTES_FACTOR = 2
"""A worker's results may take this many times the bytes of the answer that is made of them."""
ALONE = 1
"""Calls in a batch, where it is one."""
ANY_NUMBER = 1 << 30


@dataclass(frozen=True, slots=True)
class TakenUp:
    """A worker has begun with the call.

    Attributes:
        queue_seconds: how long it waited.
        is_cached: what follows was computed for an earlier call.
    """

    queue_seconds: float
    is_cached: bool = False


Event = TakenUp | CallEvent


@dataclass(frozen=True, slots=True)
class Unary:
    """The call's answer is one message.

    Attributes:
        streaming_call: the method to use when the answer is too large.
        max_response_bytes: an answer with more is too large.
        max_block_bytes: an answer is also too large when those of its results that are one block of numbers,
            such as a matrix of edges, have more.
    """

    streaming_call: str
    max_response_bytes: int
    max_block_bytes: int

    def too_large(self, n_bytes: int) -> ResponseTooLarge:
        """The error for an answer of at least this size."""
        size = (
            f"the answer takes at least {n_bytes} bytes, more than the {self.max_response_bytes} allowed for "
            "a call that does not stream"
        )
        return ResponseTooLarge(size, self.streaming_call)

    def check_cost(self, cost: Cost, info: ModelInfo, sub_requests: Sequence[InferenceSubRequest]) -> None:
        """Refuses what is sure to be too large before it is run.

        Raises:
            ResponseTooLarge: it is; the field is named where one alone is to blame.
        """
        fault = too_many_numbers(info, sub_requests, self.max_block_bytes)
        if fault is not None:
            raise ResponseTooLarge(": ".join(fault), self.streaming_call)
        if cost.least_response_bytes > self.max_response_bytes:
            raise self.too_large(cost.least_response_bytes)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a caller wants a call to be run.

    Attributes:
        caller: whose call it is.
        unary: for an answer that is one message: none of it leaves before the last is there, so that until
            then the call can be run again without anybody noticing. None where results leave as they come.
        cache_key: what equal calls of one owner share; None when the results are not to be kept.
        priority: how urgent it is.
    """

    caller: Caller
    cache_key: CacheKey | None = None
    priority: Priority = Priority.INTERACTIVE
    unary: Unary | None = None


@dataclass(eq=False)
class Ticket:
    """One accepted call.

    Attributes:
        call: what to run.
        cost: its estimate.
        terms: how to run it.
        buffer: what its reader has not taken yet.
        recording: what has come, for later calls; None when it is not to be kept.
        max_batch_calls: how many calls a batch with it may have, itself included.
        n_deaths: workers that died on it.
        queue_seconds: how long it has waited in all.
        has_left: some result has left for the reader, so that the call cannot be run again.
        is_abandoned: its reader has gone, or it has failed, before the worker had finished it.
        own_seconds: what a worker has spent on it alone, not on its batch; 0 before it has ended.
        has_finished: the worker has nothing more to say about it.
    """

    call: Call
    cost: Cost
    terms: Terms
    buffer: EventBuffer[Event]
    recording: Recording | None = None
    max_batch_calls: int = ANY_NUMBER
    n_deaths: int = 0
    queue_seconds: float = 0.0
    has_left: bool = False
    is_abandoned: bool = False
    own_seconds: float = 0.0
    has_finished: bool = False
    _queued_at: float = field(default_factory=time.monotonic)
    _has_begun: bool = False
    _n_bytes: int = 0
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        """Its last event or its failure is in the buffer, or nobody wants it."""
        return self._over.is_set()

    @cached_property
    def n_rows(self) -> int:
        """Rows it takes in a batch."""
        return self.call.n_rows

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of all rows together."""
        return self.call.n_tokens

    @cached_property
    def longest_prompt(self) -> int:
        """Tokens of its longest prompt."""
        return max((len(one.inference.token_ids) for one in self.call.sub_requests), default=0)

    @cached_property
    def work(self) -> float:
        """What it is likely to take of a device, in the unit of `device_work`."""
        return device_work(self.cost, self.n_rows)

    def take_up(self) -> None:
        """A worker begins."""
        self.queue_seconds += time.monotonic() - self._queued_at
        if not self._has_begun:
            self.buffer.put(TakenUp(self.queue_seconds), n_bytes=0)

    def add(self, event: CallEvent, n_bytes: int) -> asyncio.Future[None] | None:
        """Takes an event from a worker.

        Returns:
            As from `EventBuffer.put`. The ticket breaks off by itself where an event does not get to disk.

        Raises:
            OverLimit: there is no room for the event, or the answer is too large for one message.
        """
        if self.is_over:
            return None
        self._n_bytes += n_bytes
        unary = self.terms.unary
        if unary is not None and self._n_bytes > EVENT_BYTES_FACTOR * unary.max_response_bytes:
            raise unary.too_large(self._n_bytes // EVENT_BYTES_FACTOR)
        if self.recording is not None:
            self.recording.add(event, n_bytes)
        if isinstance(event, Finished):
            self.own_seconds = event.seconds.derive + event.seconds.score
            event = replace(event, seconds=replace(event.seconds, queue=self.queue_seconds))
        stored = self.buffer.put(event, n_bytes)
        if stored is not None:
            stored.add_done_callback(self._after_storing)
        if isinstance(event, Finished):
            self.has_finished = True
            self._over.set()
        return stored

    def _after_storing(self, stored: asyncio.Future[None]) -> None:
        if not stored.cancelled() and (failure := stored.exception()) is not None:
            self.break_off(failure)

    def fail(self, failure: Exception) -> None:
        """Nothing more will come."""
        if not self.is_over:
            self._over.set()
            self.buffer.fail(failure)

    def break_off(self, failure: BaseException) -> None:
        """Something of it is lost: the reader gets the failure, whatever else has come."""
        self.is_abandoned |= not self.has_finished
        self._over.set()
        self.buffer.break_off(failure)

    def start_again(self, max_batch_calls: int) -> None:
        """Drops what a worker has made of it. It waits for another run, in a smaller batch."""
        self.buffer.clear()
        self._n_bytes = 0
        if self.recording is not None:
            self.recording.start_again()
        self.max_batch_calls = max_batch_calls
        self._queued_at = time.monotonic()

    def abandon(self) -> None:
        """Nobody wants it."""
        self.is_abandoned |= not self.has_finished
        self._over.set()
        self.buffer.clear()

    async def next_event(self) -> Event:
        """What the reader gets next.

        Raises:
            TdbError: the call failed.
        """
        if self.terms.unary is not None:
            await self._over.wait()
        event = await self.buffer.get()
        if isinstance(event, TakenUp):
            self._has_begun = True
        else:
            self.has_left = True
        return event

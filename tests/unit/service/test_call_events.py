"""No answer ends well that is not whole, and nothing that takes long is done on the event loop."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
from tdb_server.domain.budget import Budget
from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.domain.node import Nodes
from tdb_server.domain.priority import Priority
from tdb_server.domain.results import Finished, MultipleTopKResult, NamedResult, ObjectiveValues
from tdb_server.errors import InvalidRequest, ResponseTooLarge
from tdb_server.service import call_events
from tdb_server.service.call_events import CallEvents, IncompleteAnswer
from tdb_server.service.caller import answer_to
from tdb_server.service.debugger_service import DebuggerService
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.served_model import ModelSlot, ServedModel
from tdb_server.workers.ticket import Event, TakenUp, Terms
from transformer_debugger.v1.activation_pb2 import ACTIVATION_LOCATION_TYPE_ATTN_QK_LOGITS
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP, PRIORITY_UNSPECIFIED
from transformer_debugger.v1.edges_pb2 import EdgesSubRequest
from transformer_debugger.v1.loss_pb2 import LOSS_FN_NAME_LOGIT_DIFF
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferEdgesRequest,
    InferRequest,
    StreamDebugResponse,
)

from tests.unit.service.tiny_requests import LIMITS, PROMPT, TOKENIZER, debug, infer, model

VALUES = "values"
NO_NODES = MultipleTopKResult(Nodes(()), {})


class Lossy:
    """In place of the scheduler: answers everything that is asked for, but for what is to get lost."""

    def __init__(self, lost: Sequence[str]) -> None:
        self._lost = lost
        self.terms: Terms | None = None
        self.seconds: float | None = None

    def check_room(self, caller: object, priority: object) -> None: ...

    def open_call(self, caller: object) -> nullcontext[None]:
        return nullcontext()

    def call_without_worker(self, caller: object) -> nullcontext[None]:
        return nullcontext()

    def likely_seconds(self, cost: object, n_rows: int) -> float | None:
        return self.seconds

    async def submit(self, call, cost, terms) -> AsyncIterator[Event]:
        self.terms = terms
        yield TakenUp(0.0)
        for index, one in enumerate(call.sub_requests):
            if VALUES not in self._lost:
                yield ObjectiveValues(index, 1.5, None)
            for name in one.processing:
                if name not in self._lost:
                    yield NamedResult(index, name, NO_NODES)
        yield Finished()


def service(*lost: str, max_block_bytes: int = LIMITS.max_response_bytes) -> DebuggerService:
    return replace(service_of(Lossy(lost)), max_block_bytes=max_block_bytes)


def service_of(scheduler: Lossy) -> DebuggerService:
    slot = ModelSlot()
    slot.fill(ServedModel(model(), TOKENIZER, LIMITS))
    threads = FairThreads(Budget(LIMITS.max_buffered_bytes, "memory", "BUFFERS_FULL"))
    return DebuggerService(
        CallEvents(slot, scheduler, threads), LIMITS.max_response_bytes, LIMITS.max_response_bytes
    )


async def streamed(
    service: DebuggerService, request: DebugRequest | None = None
) -> list[StreamDebugResponse]:
    return [message async for message in service.StreamDebug(request or debug(), None)]


async def test_the_last_message_of_a_stream_counts_them_all():
    messages = await streamed(service())
    assert messages[-1].finished.message_count == len(messages)
    estimate = debug()
    estimate.validate_only = True
    messages = [message async for message in service().StreamDebug(estimate, None)]
    assert messages[-1].finished.message_count == len(messages) == 2


def edges(whole_matrix: bool = True, validate_only: bool = False) -> InferEdgesRequest:
    one = EdgesSubRequest(prompt=PROMPT, baseline_prompts=[PROMPT], whole_matrix=whole_matrix)
    one.loss_fn_config.name = LOSS_FN_NAME_LOGIT_DIFF
    one.loss_fn_config.target_tokens.append(" the")
    return InferEdgesRequest(sub_requests=[one], validate_only=validate_only)


def place() -> InferRequest:
    spec = NamedProcessingSpec(name="x")
    spec.activations.activation_location_type = ACTIVATION_LOCATION_TYPE_ATTN_QK_LOGITS
    return infer(lambda it: it.processing_specs.append(spec))


async def test_blocks_of_numbers_are_refused_by_their_fields():
    """16 writers and 40 readers; 3 layers of 9 by 9 tokens and 4 heads."""
    tight, roomy = service(max_block_bytes=2559), service(max_block_bytes=3888)
    with pytest.raises(ResponseTooLarge) as caught:
        await tight.InferEdges(edges(), None)
    assert caught.value.streaming_call == "StreamInferEdges"
    field, what = "sub_requests[0].whole_matrix", "scores of 16 writers and 40 readers"
    assert caught.value.message.startswith(f"{field}: {what} are 640 numbers in 2560 bytes")
    assert "may have 639 in 2559 bytes; use StreamInferEdges" in caught.value.message
    assert (await tight.InferEdges(edges(validate_only=True), None)).estimated_cost.response_bytes > 2559
    for request in (edges(), edges(whole_matrix=False)):
        assert await roomy.InferEdges(request, None)
    field = r"^sub_requests\[0\]\.processing_specs\[0\]\.activations: 3 layers of attn.qk_logits at 9 tokens"
    with pytest.raises(ResponseTooLarge, match=field):
        await service(max_block_bytes=3887).Infer(place(), None)
    assert await roomy.Infer(place(), None)


@pytest.mark.parametrize("lost", [VALUES, "topKComponents", "topOutputTokenLogits"])
async def test_an_answer_without_all_that_was_asked_for_is_none(lost):
    with pytest.raises(IncompleteAnswer):
        await streamed(service(lost))
    with pytest.raises(IncompleteAnswer):
        await service(lost).Debug(debug(), None)


@pytest.mark.parametrize(("n_sub_requests", "is_on_loop"), [(1, True), (32, False)])
@pytest.mark.parametrize("step", ["estimated_cost", "cache_key", "_put_started"])
async def test_many_sub_requests_are_prepared_beside_the_loop(monkeypatch, step, n_sub_requests, is_on_loop):
    """Half a kilobyte on the wire, and forty milliseconds of work."""
    threads, really = [], getattr(call_events, step)

    def noted(*arguments):
        threads.append(threading.get_ident())
        return really(*arguments)

    monkeypatch.setattr(call_events, step, noted)
    request = debug()
    request.sub_requests.extend([request.sub_requests[0]] * (n_sub_requests - 1))
    assert len((await service().Debug(request, None)).sub_responses) == n_sub_requests
    assert [one == threading.get_ident() for one in threads] == [is_on_loop]


async def test_a_message_that_is_lost_on_the_way_into_an_answer_is_missed(monkeypatch):
    whole = CallEvents.answer

    async def without_the_third(self, *arguments):
        async for number, message in _numbered(whole(self, *arguments)):
            if number != 2:
                yield message

    assert len((await service().Debug(debug(), None)).sub_responses[0].results) == 8
    monkeypatch.setattr(CallEvents, "answer", without_the_third)
    with pytest.raises(IncompleteAnswer):
        await service().Debug(debug(), None)


@pytest.mark.parametrize(
    ("told", "allowed", "given"),
    [
        (PRIORITY_UNSPECIFIED, Priority.INTERACTIVE, Priority.INTERACTIVE),
        (PRIORITY_INTERACTIVE, Priority.INTERACTIVE, Priority.INTERACTIVE),
        (PRIORITY_SWEEP, Priority.INTERACTIVE, Priority.SWEEP),
        (PRIORITY_UNSPECIFIED, Priority.SWEEP, Priority.SWEEP),
        (PRIORITY_INTERACTIVE, Priority.SWEEP, Priority.SWEEP),
        (PRIORITY_SWEEP, Priority.SWEEP, Priority.SWEEP),
    ],
)
async def test_a_call_is_as_urgent_as_it_says_and_its_caller_may(told, allowed, given):
    answer_to(Caller("alice", CallerLimits(max_priority=allowed)))
    request, scheduler = debug(), Lossy(())
    request.priority = told
    await streamed(service_of(scheduler), request)
    assert scheduler.terms is not None
    assert scheduler.terms.priority is given


async def test_a_priority_that_is_none():
    request = debug()
    request.priority = 7
    with pytest.raises(InvalidRequest) as caught:
        await streamed(service(), request)
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("priority", "UNKNOWN_ENUM_VALUE")


async def _numbered(
    messages: AsyncIterator[StreamDebugResponse],
) -> AsyncIterator[tuple[int, StreamDebugResponse]]:
    number = 0
    async for message in messages:
        yield number, message
        number += 1


@pytest.mark.parametrize("seconds", [None, 0.25])
async def test_an_estimate_says_how_long_it_takes_where_that_is_known(seconds: float | None) -> None:
    request, scheduler = debug(), Lossy(())
    request.validate_only, scheduler.seconds = True, seconds
    started, _ = await streamed(service_of(scheduler), request)
    cost = started.started.estimated_cost
    assert (cost.seconds if cost.HasField("seconds") else None) == seconds
    assert cost.activation_bytes > 0

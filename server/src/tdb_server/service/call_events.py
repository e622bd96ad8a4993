"""What all calls share, debug or general, streamed or not: check, estimate, run, and put into messages."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from transformer_debugger.v1 import call_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, InferRequest

from tdb_server.domain.call import Call
from tdb_server.domain.cost import estimated_cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.priority import Priority
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import InferenceSubRequest
from tdb_server.domain.results import Finished, NamedResult, ObjectiveValues
from tdb_server.errors import FieldViolation, InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.ablation_messages import ablation_message
from tdb_server.service.caller import current_caller
from tdb_server.service.enum_names import PRIORITIES
from tdb_server.service.error_status import ResponseTooLarge
from tdb_server.service.served_model import ModelSlot, ServedModel
from tdb_server.service.streaming import StreamMessage, StreamWriter
from tdb_server.service.telemetry.call_record import CallRecord, current_record
from tdb_server.workers.result_cache import cache_key
from tdb_server.workers.scheduler import Scheduler
from tdb_server.workers.ticket import Event, TakenUp, Terms

LONG_REQUEST_BYTES = 64 * 1024
Request = TypeVar("Request", DebugRequest, InferRequest)
Parse = Callable[[Request, ModelInfo, Limits, Tokenizer], Sequence[InferenceSubRequest]]


@dataclass(frozen=True, slots=True)
class Unary:
    """The call's answer is one message.

    Attributes:
        streaming_call: the method to use when the answer is too large.
        max_response_bytes: what is too large.
    """

    streaming_call: str
    max_response_bytes: int


class CallEvents:
    """Answers calls as events of a stream.

    Args:
        slot: where the model is.
        scheduler: who runs them.
    """

    def __init__(self, slot: ModelSlot, scheduler: Scheduler) -> None:
        self._slot = slot
        self._scheduler = scheduler
        self._call_ids = itertools.count(1)

    async def answer(
        self,
        request: Request,
        parse: Parse[Request],
        new_message: Callable[[], StreamMessage],
        unary: Unary | None = None,
    ) -> AsyncGenerator[StreamMessage]:
        """Runs a request. Closing the generator cancels it.

        Args:
            request: as it came.
            parse: checks it and makes sub-requests of it.
            new_message: makes an empty message of the stream.
            unary: given when the answer is collected into one message: then tensors stay whole.

        Yields:
            The messages of a stream in their order.

        Raises:
            TdbError: the request is refused, or failed.
        """
        model, caller, record = self._slot.model(), current_caller(), current_record()
        priority = _priority(request).at_most(caller.limits.max_priority)
        if not request.validate_only:
            self._scheduler.check_room(caller, priority)
        record.named(request.request_id or uuid.uuid4().hex, len(request.sub_requests))
        sub_requests = tuple(await _parsed(request, parse, model))
        cost = estimated_cost(model.info, sub_requests)
        first = new_message()
        _put_started(first.started, record.request_id, model, sub_requests)
        record.parsed([one.token_strings for one in first.started.sub_requests])
        if request.validate_only:
            first.started.estimated_cost.activation_bytes = cost.activation_bytes
            first.started.estimated_cost.response_bytes = cost.response_bytes
            last = new_message()
            last.finished.SetInParent()
            yield first
            yield last
            return
        if unary is not None and cost.tensor_bytes > unary.max_response_bytes:
            raise ResponseTooLarge(cost.tensor_bytes, unary.max_response_bytes, unary.streaming_call)
        call = Call(str(next(self._call_ids)), sub_requests)
        prompts = [one.inference.token_ids for one in sub_requests]
        chunk_bytes = None if unary else model.limits.chunk_bytes
        writer = StreamWriter(new_message, model.tokenizer, prompts, chunk_bytes)
        key = cache_key(caller.cache_owner, model.info.digest, sub_requests)
        terms = Terms(caller, in_pieces=unary is None, cache_key=key, priority=priority)
        record.submitted()
        async with aclosing(self._scheduler.submit(call, cost, terms)) as events:
            async for message in _messages(events, first, writer, record):
                yield message


async def _messages(
    events: AsyncIterator[Event],
    first: StreamMessage,
    writer: StreamWriter[StreamMessage],
    record: CallRecord,
) -> AsyncIterator[StreamMessage]:
    serialize_seconds = 0.0
    async for event in events:
        match event:
            case TakenUp(queue_seconds, is_cached):
                first.started.queue_seconds = queue_seconds
                first.started.cached = is_cached
                record.taken_up(queue_seconds, is_cached=is_cached)
                yield first
            case ObjectiveValues():
                yield writer.values(event)
            case NamedResult():
                begun_at = time.perf_counter()
                for message in writer.result(event):
                    serialize_seconds += time.perf_counter() - begun_at
                    yield message
                    begun_at = time.perf_counter()
            case Finished():
                record.finished_running()
                yield writer.finished(event, serialize_seconds)


async def _parsed(
    request: Request, parse: Parse[Request], model: ServedModel
) -> Sequence[InferenceSubRequest]:
    """Parses on the event loop, or beside it when that may take long."""
    if request.ByteSize() < LONG_REQUEST_BYTES:
        return parse(request, model.info, model.limits, model.tokenizer)
    return await asyncio.to_thread(parse, request, model.info, model.limits, model.tokenizer)


def _priority(request: DebugRequest | InferRequest) -> Priority:
    """How urgent a request says it is.

    Raises:
        InvalidRequest: with a number that this server does not know.
    """
    if request.priority == PRIORITIES.unspecified:
        return Priority.INTERACTIVE
    if request.priority not in PRIORITIES.members:
        description = f"{request.priority} is not a value this server knows"
        raise InvalidRequest([FieldViolation("priority", description, Reason.UNKNOWN_ENUM_VALUE)])
    return PRIORITIES.members[request.priority]


def _put_started(
    started: call_pb2.Started,
    request_id: str,
    model: ServedModel,
    sub_requests: Sequence[InferenceSubRequest],
) -> None:
    started.info.request_id = request_id
    started.info.model_name = model.info.name
    started.info.model_digest = model.info.digest
    token_strings = model.tokenizer.token_strings
    for one in sub_requests:
        inference = one.inference
        tokens = started.sub_requests.add(
            token_ids=inference.token_ids,
            token_strings=token_strings(inference.token_ids),
            bos_added=inference.bos_added,
            ablation_specs=map(ablation_message, inference.ablations),
        )
        if inference.loss is not None:
            for message, token_ids in (
                (tokens.targets, inference.loss.target_tokens),
                (tokens.distractors, inference.loss.distractor_tokens),
            ):
                message.SetInParent()  # no tokens are something else than no loss
                message.token_ids.extend(token_ids)
                message.token_strings.extend(token_strings(token_ids))

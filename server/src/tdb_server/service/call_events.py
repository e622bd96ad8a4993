"""What all calls share, debug or general, streamed or not: check, estimate, run, and put into messages."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from transformer_debugger.v1 import call_pb2
from transformer_debugger.v1.ablation_pb2 import AblationSpec as AblationSpecMessage
from transformer_debugger.v1.activation_pb2 import ActivationIndex, TensorIndex
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    InferEdgesRequest,
    InferRequest,
)

from tdb_server.domain.call import Call
from tdb_server.domain.cost import Cost, estimated_cost
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.priority import Priority
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AblationSpec, InferenceSubRequest, ValueType
from tdb_server.domain.results import Finished, NamedResult, ObjectiveValues
from tdb_server.errors import FieldViolation, InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.caller import current_caller
from tdb_server.service.enum_names import BACKWARD_RULES, HOOK_POINTS, PASS_TYPES, PRIORITIES, VALUE_TYPES
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.long_requests import LONG_REQUEST_BYTES, MEMORY_FACTOR
from tdb_server.service.served_model import ModelSlot, ServedModel
from tdb_server.service.streaming import StreamMessage, StreamWriter
from tdb_server.service.telemetry.call_record import CallRecord, current_record
from tdb_server.workers.result_cache import CacheKey, cache_key
from tdb_server.workers.scheduler import Scheduler
from tdb_server.workers.ticket import Event, TakenUp, Terms, Unary

FEW_SUB_REQUESTS = 4
"""With no more sub-requests, the cost of a short request is estimated in a few milliseconds."""
_VALUES = None
"""Stands for the objective values of a sub-request where a result has its name."""
Request = TypeVar("Request", DebugRequest, InferRequest, InferEdgesRequest)
_Prepared = tuple[tuple[InferenceSubRequest, ...], Cost, CacheKey | None]
Parse = Callable[[Request, ModelInfo, Limits, Tokenizer], Sequence[InferenceSubRequest]]


class IncompleteAnswer(Exception):  # noqa: N818
    """Something is missing although all went well: a fault of the server's."""


@dataclass(frozen=True, slots=True)
class CallEvents:
    """Answers calls as events of a stream.

    Attributes:
        slot: where the model is.
        scheduler: who runs them.
        threads: where long requests are read.
    """

    slot: ModelSlot
    scheduler: Scheduler
    threads: FairThreads
    _call_ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def answer(
        self,
        request: Request,
        parse: Parse[Request],
        new_message: Callable[..., StreamMessage],
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
        model, caller, record = self.slot.model(), current_caller(), current_record()
        priority = _priority(request).at_most(caller.limits.max_priority)
        record.request_id = request.request_id or uuid.uuid4().hex
        record.n_sub_requests = len(request.sub_requests)
        if request.validate_only:
            reading = self.scheduler.call_without_worker(caller)
        else:
            self.scheduler.check_room(caller, priority)
            reading = self.scheduler.open_call(caller)
        first = new_message()
        with reading:
            prepared = self._prepared(request, parse, model, first.started, record.request_id)
            sub_requests, cost, key = await prepared
        record.parsed([one.token_strings for one in first.started.sub_requests])
        if request.validate_only:
            estimate = first.started.estimated_cost
            estimate.activation_bytes, estimate.response_bytes = cost.activation_bytes, cost.response_bytes
            seconds = self.scheduler.likely_seconds(cost, len(sub_requests))
            if seconds is not None:
                estimate.seconds = seconds
            last = new_message()
            last.finished.message_count = 2
            yield first
            yield last
            return
        if unary is not None:
            unary.check_cost(cost, model.info, sub_requests)
        call = Call(str(next(self._call_ids)), sub_requests)
        prompts = [one.inference.token_ids for one in sub_requests]
        chunk_bytes = None if unary else model.limits.chunk_bytes
        writer = StreamWriter(new_message, model.tokenizer, prompts, chunk_bytes)
        terms = Terms(caller, cache_key=key, priority=priority, unary=unary)
        record.submitted_seconds = record.elapsed_seconds
        async with aclosing(self.scheduler.submit(call, cost, terms)) as events:
            async for message in _messages(events, sub_requests, first, writer, record):
                yield message

    async def _prepared(
        self,
        request: Request,
        parse: Parse[Request],
        model: ServedModel,
        started: call_pb2.Started,
        request_id: str,
    ) -> _Prepared:
        """Does what comes before a call runs: on the event loop, or beside it when that may take long.

        Returns:
            What is asked for, its estimated cost, and what equal requests share; None where nothing will run.
        """
        caller = current_caller()

        def prepare() -> _Prepared:
            sub_requests = tuple(parse(request, model.info, model.limits, model.tokenizer))
            _put_started(started, request_id, model, sub_requests)
            key = None
            if not request.validate_only:
                key = cache_key(caller.cache_owner, model.info.digest, sub_requests)
            return sub_requests, estimated_cost(model.info, sub_requests), key

        # Protobuf puts a message together once more to say how long it is.
        n_bytes = current_record().received_bytes or request.ByteSize()
        if n_bytes <= LONG_REQUEST_BYTES and len(request.sub_requests) <= FEW_SUB_REQUESTS:
            return prepare()
        return await self.threads.run(caller.name, MEMORY_FACTOR * n_bytes, prepare)


async def _messages(
    events: AsyncIterator[Event],
    sub_requests: Sequence[InferenceSubRequest],
    first: StreamMessage,
    writer: StreamWriter[StreamMessage],
    record: CallRecord,
) -> AsyncIterator[StreamMessage]:
    serialize_seconds, n_messages = 0.0, 0
    awaited: set[tuple[int, str | None]] = {(index, _VALUES) for index in range(len(sub_requests))}
    awaited |= {(index, name) for index, one in enumerate(sub_requests) for name in one.processing}
    async for event in events:
        match event:
            case TakenUp(queue_seconds, is_cached):
                first.started.queue_seconds = queue_seconds
                first.started.cached = is_cached
                record.queue_seconds, record.is_cached = queue_seconds, is_cached
                n_messages += 1
                yield first
            case ObjectiveValues():
                awaited.discard((event.sub_request_index, _VALUES))
                n_messages += 1
                yield writer.values(event)
            case NamedResult():
                awaited.discard((event.sub_request_index, event.name))
                begun_at = time.perf_counter()
                for message in writer.result(event):
                    serialize_seconds += time.perf_counter() - begun_at
                    n_messages += 1
                    yield message
                    begun_at = time.perf_counter()
            case Finished():
                if awaited:
                    raise IncompleteAnswer(f"the worker finished without {len(awaited)} results")
                record.finished_running()
                yield writer.finished(event, serialize_seconds, n_messages + 1)


def _priority(request: DebugRequest | InferRequest | InferEdgesRequest) -> Priority:
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
            ablation_specs=map(_ablation_message, inference.ablations),
            baselines=[
                {"token_ids": one, "token_strings": token_strings(one)} for one in inference.baselines
            ],
            backward_rule=BACKWARD_RULES.numbers[inference.backward_rule],
        )
        if inference.loss is not None:
            for message, token_ids in (
                (tokens.targets, inference.loss.target_tokens),
                (tokens.distractors, inference.loss.distractor_tokens),
            ):
                message.SetInParent()  # no tokens are something else than no loss
                message.token_ids.extend(token_ids)
                message.token_strings.extend(token_strings(token_ids))


def _ablation_message(ablation: AblationSpec) -> AblationSpecMessage:
    index = ablation.index
    return AblationSpecMessage(
        index=ActivationIndex(
            activation_location_type=HOOK_POINTS.numbers[index.hook_point],
            layer_index=index.layer_index,
            tensor_indices=[
                TensorIndex(all=True) if one is None else TensorIndex(index=one)
                for one in index.tensor_indices
            ],
            pass_type=PASS_TYPES.numbers[index.pass_type],
        ),
        value=ablation.value,
        value_type=VALUE_TYPES.number(
            None if ablation.value_type is ValueType.NUMBER else ablation.value_type
        ),
        direction=ablation.direction,
        attended_to_token=ablation.attended_to_token,
    )

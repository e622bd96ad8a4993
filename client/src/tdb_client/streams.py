"""A stream as typed events: messages go in as they come, events come out as soon as they are whole.

The reader does no input or output, so that the sync and the async client share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from transformer_debugger.v1 import call_pb2
from transformer_debugger.v1.result_pb2 import NamedResult
from transformer_debugger.v1.tensor_pb2 import Tensor, TensorChunk
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    StreamDebugResponse,
    StreamInferEdgesResponse,
    StreamInferResponse,
)

from tdb_client import decoding
from tdb_client.errors import IncompleteResponseError, ResponseError
from tdb_client.events import Event, Finished, ResultReady, Started, Values
from tdb_client.results import LossTokens, PromptTokens
from tdb_client.tensors import ChunkedTensor


@dataclass(slots=True)
class _Pending:
    """A result whose parts or chunks are still coming."""

    message: NamedResult
    has_last_part: bool = False
    tensors: dict[int, ChunkedTensor] = field(default_factory=dict)


class EventReader:
    """Turns the messages of one stream into events."""

    def __init__(self, n_sub_requests: int) -> None:
        self._n_sub_requests = n_sub_requests
        self._pending: dict[tuple[int, str], _Pending] = {}
        self._awaited: dict[int, tuple[int, str]] = {}  # which result a tensor belongs to, by tensor id
        self._n_messages = 0
        self._is_finished = False

    def read(
        self, message: StreamDebugResponse | StreamInferResponse | StreamInferEdgesResponse
    ) -> Iterator[Event]:
        """Takes the next message and yields the events that it completes: mostly none or one.

        Raises:
            ResponseError: the message breaks the protos' promises.
            IncompleteResponseError: it is the last one, and others are missing.
        """
        self._n_messages += 1
        match message.WhichOneof("event"):
            case "started":
                if len(message.started.sub_requests) != self._n_sub_requests:
                    raise ResponseError(
                        f"the stream does not have the tokens of {self._n_sub_requests} prompts"
                    )
                yield _started(message.started)
            case "result":
                self._check_index(message.result.sub_request_index)
                yield from self._take_part(message.result)
            case "tensor_chunk":
                yield from self._take_chunk(message.tensor_chunk)
            case "values":
                self._check_index(message.values.sub_request_index)
                yield _values(message.values)
            case "finished":
                if self._pending:
                    raise IncompleteResponseError(f"the stream finished without all of {self._missing()}")
                finished = message.finished
                # Older servers do not count.
                if finished.message_count not in (0, self._n_messages):
                    raise IncompleteResponseError(
                        f"{self._n_messages} messages came of a stream of {finished.message_count}"
                    )
                self._is_finished = True
                yield Finished(decoding.timings(finished.timings), finished.peak_memory_bytes)

    def end(self) -> None:
        """To be called when no more messages come.

        Raises:
            IncompleteResponseError: the stream did not finish.
        """
        if not self._is_finished:
            raise IncompleteResponseError("the stream ended before it was finished")

    def _check_index(self, sub_request_index: int) -> None:
        if not 0 <= sub_request_index < self._n_sub_requests:
            raise ResponseError(f"sub-request {sub_request_index} is answered, which was not asked for")

    def _missing(self) -> str:
        return ", ".join(f"{name!r} of sub-request {index}" for index, name in self._pending)

    def _take_part(self, part: call_pb2.ResultPart) -> Iterator[Event]:
        key = (part.sub_request_index, part.result.name)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending(part.result)
            for tensor in _tensors(part.result):
                if tensor.WhichOneof("contents") == "chunked":
                    self._await(key, pending, ChunkedTensor(tensor))
        else:
            pending.message.MergeFrom(part.result)  # appends to the repeated fields
        pending.has_last_part = part.last_part
        yield from self._completed(key, pending)

    def _await(self, key: tuple[int, str], pending: _Pending, tensor: ChunkedTensor) -> None:
        if tensor.is_complete:  # has no bytes to wait for
            return
        if tensor.tensor_id in self._awaited:
            raise ResponseError(f"tensor {tensor.tensor_id} is announced twice")
        self._awaited[tensor.tensor_id] = key
        pending.tensors[tensor.tensor_id] = tensor

    def _take_chunk(self, chunk: TensorChunk) -> Iterator[Event]:
        key = self._awaited.get(chunk.tensor_id)
        if key is None:
            raise ResponseError(f"a chunk of tensor {chunk.tensor_id}, which nothing announced")
        pending = self._pending[key]
        tensor = pending.tensors[chunk.tensor_id]
        tensor.add(chunk)
        if tensor.is_complete:
            del self._awaited[chunk.tensor_id], pending.tensors[chunk.tensor_id]
            yield from self._completed(key, pending)

    def _completed(self, key: tuple[int, str], pending: _Pending) -> Iterator[Event]:
        if pending.has_last_part and not pending.tensors:
            del self._pending[key]
            yield ResultReady(*key, decoding.processing_result(pending.message))


def _started(message: call_pb2.Started) -> Started:
    return Started(
        call=decoding.call_info(message.info),
        queue_seconds=message.queue_seconds,
        prompts=tuple(
            PromptTokens(tuple(one.token_ids), tuple(one.token_strings), one.bos_added)
            for one in message.sub_requests
        ),
        estimated_cost=decoding.estimated_cost(message.estimated_cost)
        if message.HasField("estimated_cost")
        else None,
        cached=message.cached,
        ablations=tuple(
            tuple(map(decoding.ablation_spec, one.ablation_specs)) for one in message.sub_requests
        ),
        losses=tuple(map(_loss_tokens, message.sub_requests)),
        backward_rules=tuple(decoding.backward_rule(one.backward_rule) for one in message.sub_requests),
        baselines=tuple(tuple(map(decoding.token_list, one.baselines)) for one in message.sub_requests),
    )


def _loss_tokens(message: call_pb2.SubRequestTokens) -> LossTokens | None:
    if not message.HasField("targets"):
        return None
    targets, distractors = message.targets, message.distractors
    return LossTokens(
        tuple(targets.token_ids),
        tuple(targets.token_strings),
        tuple(distractors.token_ids),
        tuple(distractors.token_strings),
    )


def _values(message: call_pb2.SubRequestValues) -> Values:
    return Values(
        sub_request_index=message.sub_request_index,
        loss=message.loss if message.HasField("loss") else None,
        traced_value=message.activation_value_for_backward_pass
        if message.HasField("activation_value_for_backward_pass")
        else None,
        circuit=decoding.circuit_values(message.circuit) if message.HasField("circuit") else None,
    )


@cache
def _has_tensors(kind: Descriptor) -> bool:
    """Whether messages of a kind may have a tensor in them. No kind of message has itself in it."""
    return kind.full_name == Tensor.DESCRIPTOR.full_name or any(
        one.message_type is not None and _has_tensors(one.message_type) for one in kind.fields
    )


def _tensors(message: Message) -> Iterator[Tensor]:
    """Every tensor in a message, however deep."""
    if isinstance(message, Tensor):
        yield message
        return
    for kind, value in message.ListFields():
        if kind.message_type is not None and _has_tensors(kind.message_type):
            for one in value if kind.is_repeated else (value,):
                yield from _tensors(one)

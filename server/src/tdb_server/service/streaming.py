"""From a call's events to the messages of a stream, none of them large.

A result goes out in parts of at most NODES_PER_PART nodes. The tensors of a part stay in it while they take
less than one chunk together; any other tensor leaves a header in its place and follows in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

import google_crc32c
import numpy as np
from transformer_debugger.v1 import call_pb2, result_pb2, tensor_pb2

from tdb_server.domain.results import (
    Finished,
    IntArray,
    MultipleTopKResult,
    NamedResult,
    ObjectiveValues,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.result_messages import named_result_message

NODES_PER_PART = 256
"""With ten tokens at both ends of each node's ranking a part takes about 100 KB."""
StreamMessage = (
    call_pb2.Started
    | call_pb2.ResultPart
    | call_pb2.SubRequestValues
    | call_pb2.Finished
    | tensor_pb2.TensorChunk
)


def result_parts(result: NamedResult) -> Iterator[NamedResult]:
    """The result cut by nodes. Groups, with their tensors, are in the first part only."""
    whole = result.result
    if not isinstance(whole, MultipleTopKResult | ScoredTokensResult | TokenPairAttributionResult):
        yield result
        return
    for start in range(0, max(len(whole.nodes), 1), NODES_PER_PART):
        nodes = slice(start, start + NODES_PER_PART)
        match whole:
            case MultipleTopKResult():
                part = replace(whole, nodes=whole.nodes[nodes], groups=whole.groups if start == 0 else {})
                yield replace(result, result=part)
            case ScoredTokensResult():
                rows, kept = _rows_of_part(whole.rows[nodes])
                tokens = _rows_of_tokens(whole.tokens, kept)
                scored = replace(whole, nodes=whole.nodes[nodes], rows=rows, tokens=tokens)
                yield replace(result, result=scored)
            case TokenPairAttributionResult():
                yield replace(result, result=replace(whole, nodes=whole.nodes[nodes], rows=whole.rows[nodes]))


def _rows_of_part(rows: IntArray) -> tuple[IntArray, IntArray]:
    """Renumbers the rows that a part uses: the new numbers, and which of the old rows they are."""
    kept, renumbered = np.unique(rows[rows >= 0], return_inverse=True)
    renamed = np.full_like(rows, -1)
    renamed[rows >= 0] = renumbered
    return renamed, kept


def _rows_of_tokens(tokens: TopTokens, rows: IntArray) -> TopTokens:
    return TopTokens(*(getattr(tokens, column.name)[rows] for column in fields(TopTokens)))


def tensors_of(result: result_pb2.NamedResult) -> list[tensor_pb2.Tensor]:
    """The tensors of a result, in the order of its fields."""
    match result.WhichOneof("result"):
        case "multiple_top_k":
            groups = result.multiple_top_k.groups
            return [
                tensor for group in groups for tensor in (group.activations, *(one.sum for one in group.sums))
            ]
        case "derived_scalars":
            scalars = result.derived_scalars
            normalized = (
                [scalars.normalized_activations] if scalars.HasField("normalized_activations") else []
            )
            return [scalars.activations, *normalized]
        case "derived_attention_scalars":
            fields = result.derived_attention_scalars.ListFields()
            return [value for _, value in fields if isinstance(value, tensor_pb2.Tensor)]
        case _:
            return []


class StreamWriter:
    """Makes the messages of one stream.

    Args:
        tokenizer: the model's.
        prompts: token ids of each sub-request.
        chunk_bytes: of tensor data in one message; None to leave all tensors in their results.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], chunk_bytes: int | None
    ) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._chunk_bytes = chunk_bytes
        self._n_chunked = 0

    def result(self, result: NamedResult) -> Iterator[StreamMessage]:
        """A result's parts, each followed by the chunks of its tensors."""
        parts = list(result_parts(result))
        for part in parts:
            message = named_result_message(part, self._tokenizer, self._prompts[part.sub_request_index])
            chunked = self._take_out(tensors_of(message))
            yield call_pb2.ResultPart(
                sub_request_index=result.sub_request_index, result=message, last_part=part is parts[-1]
            )
            for tensor_id, data in chunked:
                yield from self._chunks(tensor_id, data)

    def _take_out(self, tensors: Sequence[tensor_pb2.Tensor]) -> list[tuple[int, bytes]]:
        """Replaces the data of tensors that do not fit by headers; returns the data with their numbers."""
        taken: list[tuple[int, bytes]] = []
        room = self._chunk_bytes
        for tensor in tensors:
            data = tensor.data
            if room is None:
                continue
            if len(data) <= room:
                room -= len(data)
                continue
            self._n_chunked += 1
            tensor.chunked.tensor_id = self._n_chunked
            tensor.chunked.total_bytes = len(data)
            tensor.chunked.crc32c = google_crc32c.value(data)
            taken.append((self._n_chunked, data))
        return taken

    def _chunks(self, tensor_id: int, data: bytes) -> Iterator[tensor_pb2.TensorChunk]:
        step = self._chunk_bytes or len(data)
        for offset in range(0, len(data), step):
            yield tensor_pb2.TensorChunk(
                tensor_id=tensor_id, offset=offset, data=data[offset : offset + step]
            )


def values_message(values: ObjectiveValues) -> call_pb2.SubRequestValues:
    """Loss and traced value; fields stay absent where there is none."""
    return call_pb2.SubRequestValues(
        sub_request_index=values.sub_request_index,
        loss=values.loss,
        activation_value_for_backward_pass=values.activation_value,
    )


def finished_message(finished: Finished, serialize_seconds: float) -> call_pb2.Finished:
    """Where the time went."""
    seconds = finished.seconds
    timings = call_pb2.Timings(
        queue_seconds=seconds.queue,
        forward_seconds=seconds.forward,
        backward_seconds=seconds.backward,
        derive_seconds=seconds.derive,
        score_seconds=seconds.score,
        serialize_seconds=serialize_seconds,
    )
    return call_pb2.Finished(timings=timings, peak_memory_bytes=finished.peak_memory_bytes)

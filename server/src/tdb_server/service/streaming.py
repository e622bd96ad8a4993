"""From a call's events to the messages of a stream, none of them large.

A result goes out in parts of at most NODES_PER_PART nodes, fewer where their token lists are long. The
tensors of a part stay in it while they take less than one chunk together; any other tensor leaves a header in
its place and follows in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Generic, TypeVar

import google_crc32c
import numpy as np
from transformer_debugger.v1 import call_pb2, result_pb2, tensor_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    StreamDebugResponse,
    StreamInferEdgesResponse,
    StreamInferResponse,
)

from tdb_server.domain.edges import EdgesResult
from tdb_server.domain.node import Nodes
from tdb_server.domain.results import (
    ActivationsResult,
    ComponentTotalsResult,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    Finished,
    IntArray,
    LensResult,
    MultipleTopKResult,
    NamedResult,
    ObjectiveValues,
    ProcessingResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.result_messages import put_named_result

NODES_PER_PART = 256
"""With ten tokens at both ends of each node's ranking a part takes about 100 KB."""
TOKENS_PER_PART = 16 * 1024
"""The lists of a part have at most so many tokens together, which take about 300 KB."""
_UNCUT = (
    ActivationsResult,
    ComponentTotalsResult,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    EdgesResult,
    LensResult,
)
"""Results that are not cut by nodes: they have none, or one for each token."""
StreamMessage = TypeVar("StreamMessage", StreamDebugResponse, StreamInferResponse, StreamInferEdgesResponse)


def result_parts(result: NamedResult) -> Iterator[NamedResult]:
    """The result cut by nodes. Groups, with their tensors, are in the first part only."""
    whole = result.result
    if isinstance(whole, _UNCUT):
        yield result
        return
    n_nodes = min(NODES_PER_PART, max(1, TOKENS_PER_PART // _tokens_per_node(whole)))
    if len(whole.nodes) <= n_nodes:
        yield result
        return
    for start in range(0, len(whole.nodes), n_nodes):
        part = slice(start, start + n_nodes)
        nodes = Nodes(whole.nodes[part])
        match whole:
            case MultipleTopKResult():
                ranking = replace(whole, nodes=nodes, groups=whole.groups if start == 0 else {})
                yield replace(result, result=ranking)
            case ScoredTokensResult():
                rows, kept = _rows_of_part(whole.rows[part])
                tokens = _rows_of_tokens(whole.tokens, kept)
                yield replace(result, result=replace(whole, nodes=nodes, rows=rows, tokens=tokens))
            case TokenPairAttributionResult():
                yield replace(result, result=replace(whole, nodes=nodes, rows=whole.rows[part]))


def _marked(parts: Iterator[NamedResult]) -> Iterator[tuple[NamedResult, bool]]:
    """Parts, each with whether it is the last. One is made ahead; to make all would hold up the loop."""
    part = next(parts)
    for following in parts:
        yield part, False
        part = following
    yield part, True


def _tokens_per_node(result: ProcessingResult) -> int:
    match result:
        case ScoredTokensResult(tokens=tokens):
            return max(1, int(tokens.top_ids.shape[-1] + tokens.bottom_ids.shape[-1]))
        case TokenPairAttributionResult(token_indices=indices):
            return max(1, int(indices.shape[-1]))
        case _:
            return 1


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
    kind = result.WhichOneof("result")
    if kind == "multiple_top_k":
        groups = result.multiple_top_k.groups
        return [one for group in groups for one in (group.activations, *(sums.sum for sums in group.sums))]
    if kind == "activations":
        return [one.activations for one in result.activations.layers]
    if kind == "component_totals":
        return [one.total for one in result.component_totals.totals]
    fields = [] if kind is None else getattr(result, kind).ListFields()
    return [value for _, value in fields if isinstance(value, tensor_pb2.Tensor)]


@dataclass(slots=True)
class StreamWriter(Generic[StreamMessage]):
    """Makes the messages of one stream.

    Attributes:
        new_message: makes an empty one.
        tokenizer: the model's.
        prompts: token ids of each sub-request.
        chunk_bytes: of tensor data in one message; None to leave all tensors in their results.
    """

    new_message: Callable[..., StreamMessage]
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    chunk_bytes: int | None
    _n_chunked: int = 0

    def result(self, result: NamedResult) -> Iterator[StreamMessage]:
        """A result's parts, each followed by the chunks of its tensors."""
        for part, is_last in _marked(result_parts(result)):
            message = self.new_message()
            message.result.sub_request_index = result.sub_request_index
            message.result.last_part = is_last
            named = message.result.result
            put_named_result(named, part, self.tokenizer, self.prompts[part.sub_request_index])
            chunked = self._take_out(tensors_of(named))
            yield message
            for tensor_id, data in chunked:
                yield from self._chunks(tensor_id, data)

    def values(self, values: ObjectiveValues) -> StreamMessage:
        """Loss and traced value; fields stay absent where there is none."""
        values_message = call_pb2.SubRequestValues(
            sub_request_index=values.sub_request_index,
            loss=values.loss,
            activation_value_for_backward_pass=values.activation_value,
        )
        if (circuit := values.circuit) is not None:
            values_message.circuit.objective = circuit.objective
            values_message.circuit.objective_of_prompt = circuit.of_prompt
            values_message.circuit.objective_of_baseline = circuit.of_baseline
            if (faithfulness := circuit.faithfulness) is not None:
                values_message.circuit.faithfulness = faithfulness
        return self.new_message(values=values_message)

    def finished(self, finished: Finished, serialize_seconds: float, n_messages: int) -> StreamMessage:
        """Where the time went, and how many messages the stream has with this one."""
        stages = asdict(replace(finished.seconds, serialize=serialize_seconds))
        timings = call_pb2.Timings(**{f"{stage}_seconds": seconds for stage, seconds in stages.items()})
        memory = finished.peak_memory_bytes
        finished_message = call_pb2.Finished(
            timings=timings, peak_memory_bytes=memory, message_count=n_messages
        )
        return self.new_message(finished=finished_message)

    def _take_out(self, tensors: Sequence[tensor_pb2.Tensor]) -> list[tuple[int, bytes]]:
        """Replaces the data of tensors that do not fit by headers; returns the data with their numbers."""
        taken: list[tuple[int, bytes]] = []
        room = self.chunk_bytes
        if room is None:
            return taken
        for tensor in tensors:
            data = tensor.data
            if len(data) <= room:
                room -= len(data)
                continue
            self._n_chunked += 1
            tensor.chunked.tensor_id = self._n_chunked
            tensor.chunked.total_bytes = len(data)
            tensor.chunked.crc32c = google_crc32c.value(data)
            taken.append((self._n_chunked, data))
        return taken

    def _chunks(self, tensor_id: int, data: bytes) -> Iterator[StreamMessage]:
        step = self.chunk_bytes or len(data)
        for offset in range(0, len(data), step):
            part = data[offset : offset + step]
            yield self.new_message(tensor_chunk={"tensor_id": tensor_id, "offset": offset, "data": part})

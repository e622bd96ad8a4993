from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_client import (
    ChecksumError,
    DebugSubRequest,
    Finished,
    IncompleteResponseError,
    MultipleTopKResult,
    ResponseError,
    ResultReady,
    ScoredTokensResult,
    Started,
    Values,
)
from tdb_client.debug_result import DEBUG_RESULTS, debug_result
from tdb_client.events import Event, inference_results
from tdb_client.streams import EventReader
from transformer_debugger.v1 import call_pb2, result_pb2, tensor_pb2
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2

from tests.unit.client.fake_service import (
    announce,
    component_ranking,
    debug_stream,
    named_results,
    scored,
    started,
)


def message(**event: Any) -> service_pb2.StreamDebugResponse:
    return service_pb2.StreamDebugResponse(**event)


def part(
    result: result_pb2.NamedResult, *, last: bool = True, index: int = 0
) -> service_pb2.StreamDebugResponse:
    return message(result=call_pb2.ResultPart(sub_request_index=index, result=result, last_part=last))


def ranking() -> result_pb2.NamedResult:
    return result_pb2.NamedResult(name="topKComponents", multiple_top_k=component_ranking(0.0))


def read(*messages: service_pb2.StreamDebugResponse) -> list[Event]:
    reader = EventReader(1)
    events = [*reader.read(message(started=started(1)))]
    for one in messages:
        events += reader.read(one)
    return events


def test_a_whole_stream_becomes_results() -> None:
    request = service_pb2.DebugRequest(sub_requests=[service_pb2.DebugSubRequest()] * 2, request_id="mine")
    reader = EventReader(2)
    events = [event for one in debug_stream(request) for event in reader.read(one)]
    reader.end()
    kinds = [type(event) for event in events]
    assert kinds == [Started, *[ResultReady] * 8, Values, *[ResultReady] * 8, Values, Finished]
    results = [debug_result(DebugSubRequest("p"), one) for one in inference_results(events)]
    assert results[0].call.request_id == "mine"
    assert list(results[1].results) == list(DEBUG_RESULTS)
    assert results[1].loss == 3.0
    assert results[1].traced_value is None
    np.testing.assert_array_equal(
        results[1].sums["act_times_grad"]["unflattened_attn_act_times_grad"], np.arange(16.0).reshape(4, 4)
    )


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_chunks_of_several_tensors_may_mingle(shuffle: random.Random, chunk_bytes: int) -> None:
    result = ranking()
    groups = result.multiple_top_k.groups
    tensors = [groups[0].activations, groups[1].sums[1].sum, groups[3].activations]
    expected = [np.frombuffer(one.data, "<f4") for one in tensors]
    chunks = [chunk for number, one in enumerate(tensors) for chunk in announce(one, number, chunk_bytes)]
    shuffle.shuffle(chunks)
    *early, last = read(part(result), *(message(tensor_chunk=chunk) for chunk in chunks))
    assert [type(one) for one in early] == [Started]
    assert isinstance(last, ResultReady)
    assert isinstance(last.result, MultipleTopKResult)
    got = last.result.groups
    np.testing.assert_array_equal(got["write_norm"].activations, expected[0])
    array = got["act_times_grad"].sums["unflattened_attn_act_times_grad"]
    np.testing.assert_array_equal(array.array.ravel(), expected[1])
    assert array.dimensions == ("sequence_tokens", "attended_to_sequence_tokens")
    np.testing.assert_array_equal(got["activation"].activations, expected[2])


def test_parts_of_a_result_are_joined() -> None:
    whole = scored("upvotedOutputTokens", [0, 3])
    first, second = result_pb2.NamedResult(), result_pb2.NamedResult()
    for piece, rows in ((first, slice(2)), (second, slice(2, None))):
        piece.name = whole.name
        piece.scored_tokens.node_indices.extend(whole.scored_tokens.node_indices[rows])
        piece.scored_tokens.node_top_tokens.extend(whole.scored_tokens.node_top_tokens[rows])
    *_, event = read(part(first, last=False), part(second))
    assert isinstance(event, ResultReady)
    assert isinstance(event.result, ScoredTokensResult)
    assert [str(one) for one in event.result.nodes][1:3] == ["L1 head 2 @ 3 -> 1", "L0 neuron 5 @ 3"]
    assert [one is not None for one in event.result.top_tokens] == [True, False, False, True, False]


def test_parts_may_come_while_chunks_are_awaited() -> None:
    first, second = ranking(), result_pb2.NamedResult(name="topKComponents")
    second.multiple_top_k.node_indices.extend(first.multiple_top_k.node_indices[3:])
    del first.multiple_top_k.node_indices[3:]
    chunks = announce(first.multiple_top_k.groups[0].activations, 1, 10)
    rest = [message(tensor_chunk=chunk) for chunk in chunks]
    *_, event = read(part(first, last=False), rest[0], part(second), rest[1])
    assert isinstance(event, ResultReady)
    assert isinstance(event.result, MultipleTopKResult)
    assert len(event.result.nodes) == 5


def test_events_of_a_later_version_are_skipped() -> None:
    assert len(read(service_pb2.StreamDebugResponse())) == 1


def test_damage_is_noticed() -> None:
    result = ranking()
    chunks = announce(result.multiple_top_k.groups[0].activations, 1, 100)
    chunks[0].data = b"x" + chunks[0].data[1:]
    with pytest.raises(ChecksumError):
        read(part(result), message(tensor_chunk=chunks[0]))


def test_broken_promises_are_errors() -> None:
    with pytest.raises(ResponseError, match="which nothing announced"):
        read(message(tensor_chunk=tensor_pb2.TensorChunk(tensor_id=5, data=b"1")))
    with pytest.raises(ResponseError, match="sub-request 1 is answered"):
        read(part(ranking(), index=1))
    with pytest.raises(ResponseError, match="tokens of 1 prompts"):
        next(EventReader(1).read(message(started=started(2))))
    with pytest.raises(ResponseError, match="of a kind that this client does not know"):
        read(part(result_pb2.NamedResult(name="new")))
    twice = ranking()
    announce(twice.multiple_top_k.groups[0].activations, 1, 100)
    announce(twice.multiple_top_k.groups[1].activations, 1, 100)
    with pytest.raises(ResponseError, match="announced twice"):
        read(part(twice))
    short = ranking()
    del short.multiple_top_k.node_indices[0]
    with pytest.raises(ResponseError, match="a ranking of 4 nodes"):
        read(part(short))


def test_a_stream_must_finish_and_be_whole() -> None:
    with pytest.raises(IncompleteResponseError, match="ended before"):
        EventReader(1).end()
    with pytest.raises(IncompleteResponseError, match="'topKComponents' of sub-request 0"):
        read(part(ranking(), last=False), message(finished=call_pb2.Finished()))
    with pytest.raises(IncompleteResponseError, match="2 messages came of a stream of 3"):
        read(message(finished=call_pb2.Finished(message_count=3)))
    with pytest.raises(IncompleteResponseError, match="started and finished"):
        inference_results([])
    only_first = read(part(named_results()[0]), message(finished=call_pb2.Finished()))
    with pytest.raises(IncompleteResponseError, match="no result 'componentSumsForTokenDisplay'"):
        debug_result(DebugSubRequest("p"), inference_results(only_first)[0])

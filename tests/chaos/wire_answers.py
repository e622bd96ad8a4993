"""Whether two answers that came over the wire are the same, but for the rounding that a batch brings.

An answer is a number or an array per name: losses, and of every ranking the value of each node in each group,
the sums, and the tokens scored. Parts of a stream are put together first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from transformer_debugger.v1.result_pb2 import MultipleTopKResult, NamedResult, ScoredTokensResult
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugResponse, StreamDebugResponse

TOLERANCE = 1e-4
Answer = Mapping[tuple[object, ...], object]
"""Values by what they are of. Numbers are compared within the tolerance, everything else must be equal."""


def answer_of_response(response: DebugResponse) -> Answer:
    values: dict[tuple[object, ...], object] = {}
    for index, sub_response in enumerate(response.sub_responses):
        values[index, "loss"] = sub_response.loss
        for result in sub_response.results:
            values |= _values(index, result)
    return values


def answer_of_stream(events: Iterable[StreamDebugResponse]) -> Answer:
    values: dict[tuple[object, ...], object] = {}
    results: dict[tuple[int, str], NamedResult] = {}
    for event in events:
        match event.WhichOneof("event"):
            case "values":
                values[event.values.sub_request_index, "loss"] = event.values.loss
            case "result":
                key = event.result.sub_request_index, event.result.result.name
                results.setdefault(key, NamedResult()).MergeFrom(event.result.result)
    for (index, _), result in results.items():
        values |= _values(index, result)
    return values


def difference(one: Answer, other: Answer) -> str | None:
    """The first thing that differs; None when all is the same."""
    if one.keys() != other.keys():
        return f"one answer alone has {sorted(map(str, one.keys() ^ other.keys()))[:3]}"
    for key, value in one.items():
        of_other = other[key]
        if isinstance(value, float) and isinstance(of_other, float):
            if not np.isclose(value, of_other, rtol=TOLERANCE, atol=TOLERANCE):
                return f"{key}: {value} and {of_other}"
        elif value != of_other:
            return f"{key}: {value} and {of_other}"
    return None


def _values(index: int, result: NamedResult) -> dict[tuple[object, ...], object]:
    match result.WhichOneof("result"):
        case "multiple_top_k":
            found = _of_ranking(result.multiple_top_k)
        case "scored_tokens":
            found = _of_scored_tokens(result.scored_tokens)
        case _:
            found = {}
    return {(index, result.name, *key): value for key, value in found.items()}


def _of_ranking(ranking: MultipleTopKResult) -> dict[tuple[object, ...], object]:
    values: dict[tuple[object, ...], object] = {}
    nodes = [node.SerializeToString() for node in ranking.node_indices]
    for group in ranking.groups:
        numbers = np.frombuffer(group.activations.data, "<f4").tolist()
        values |= {(group.group_id, node): number for node, number in zip(nodes, numbers, strict=True)}
        for one in group.sums:
            sums = np.frombuffer(one.sum.data, "<f4").tolist()
            values |= {(group.group_id, one.derived_scalar_type, i): x for i, x in enumerate(sums)}
    return values


def _of_scored_tokens(scored: ScoredTokensResult) -> dict[tuple[object, ...], object]:
    return {
        (node.SerializeToString(), "best token"): of_node.top_tokens.top.token_ids[0]
        for node, of_node in zip(scored.node_indices, scored.node_top_tokens, strict=True)
        if of_node.HasField("top_tokens")
    }

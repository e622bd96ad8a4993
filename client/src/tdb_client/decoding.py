"""Answers read from the protos' messages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import cast

import numpy as np
from transformer_debugger.v1 import ablation_pb2, call_pb2, circuit_pb2, edges_pb2, node_pb2, result_pb2
from transformer_debugger.v1.activation_pb2 import ActivationLocationType, Dimension
from transformer_debugger.v1.backward_rule_pb2 import BACKWARD_RULE_UNSPECIFIED, BackwardRule
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType, GroupId
from transformer_debugger.v1.model_service_pb2 import TokenizeResponse
from transformer_debugger.v1.tensor_pb2 import Tensor

from tdb_client import results
from tdb_client.errors import ResponseError
from tdb_client.inference import AblationSpec, ActivationIndex
from tdb_client.interventions import AblationValueType
from tdb_client.names import enum_name
from tdb_client.nodes import Node, NodeType
from tdb_client.tensors import array_from_tensor, floats, integers
from tdb_client.token_lists import TokenLists, top_tokens


def node(index: node_pb2.NodeIndex) -> Node:
    """The node that an index names.

    Raises:
        ResponseError: too few or too many tensor indices.
    """
    node_type = cast(NodeType, enum_name(node_pb2.NodeType, index.node_type))
    layer = index.layer_index if index.HasField("layer_index") else None
    is_gradient = index.pass_type == node_pb2.PASS_TYPE_BACKWARD
    match tuple(index.tensor_indices):
        case (token, head, channel) if node_type in ("qk_channel", "v_channel"):
            return Node(node_type, layer, channel, token, head=head, is_gradient=is_gradient)
        case (token, attended_to, component):
            return Node(node_type, layer, component, token, attended_to, is_gradient=is_gradient)
        case (token, component):
            return Node(node_type, layer, component, token, is_gradient=is_gradient)
    raise ResponseError(f"a node of type {node_type} has the tensor indices {list(index.tensor_indices)}")


def ablation_spec(message: ablation_pb2.AblationSpec) -> AblationSpec:
    """An ablation of cells."""
    index = message.index
    return AblationSpec(
        ActivationIndex(
            enum_name(ActivationLocationType, index.activation_location_type),
            index.layer_index if index.HasField("layer_index") else None,
            tuple(None if one.all else one.index for one in index.tensor_indices),
            "backward" if index.pass_type == node_pb2.PASS_TYPE_BACKWARD else "forward",
        ),
        message.value,
        # An older server, which does not say, sets numbers.
        cast(AblationValueType, enum_name(ablation_pb2.AblationValueType, message.value_type))
        if message.value_type
        else "number",
        tuple(message.direction) or None,
        message.attended_to_token if message.HasField("attended_to_token") else None,
    )


def backward_rule(number: BackwardRule.ValueType) -> str:
    """The name of a backward rule. Servers that know of none say nothing, and take the derivative."""
    return "gradient" if number == BACKWARD_RULE_UNSPECIFIED else enum_name(BackwardRule, number)


def circuit_values(message: circuit_pb2.CircuitValues) -> results.CircuitValues:
    """How much of its objective a circuit keeps."""
    return results.CircuitValues(
        message.objective,
        message.objective_of_prompt,
        message.objective_of_baseline,
        message.faithfulness if message.HasField("faithfulness") else None,
    )


def token_list(message: result_pb2.TokenList) -> results.PromptTokens:
    """A baseline prompt's tokens."""
    return results.PromptTokens(tuple(message.token_ids), tuple(message.token_strings))


def processing_result(named: result_pb2.NamedResult) -> results.ProcessingResult:
    """The result in a message, whose tensors are all there.

    Raises:
        ResponseError: a kind that this client does not know, or a malformed tensor.
    """
    match named.WhichOneof("result"):
        case "multiple_top_k":
            return _multiple_top_k(named.multiple_top_k)
        case "derived_scalars":
            return _derived_scalars(named.derived_scalars)
        case "derived_attention_scalars":
            return _derived_attention_scalars(named.derived_attention_scalars)
        case "scored_tokens":
            return _scored_tokens(named.scored_tokens)
        case "token_pair_attribution":
            return _token_pair_attribution(named.token_pair_attribution)
        case "edges":
            return _edges(named.edges)
        case "lens":
            return _lens(named.lens)
        case "activations":
            return results.ActivationsResult(
                {
                    one.layer_index if one.HasField("layer_index") else None: _labelled(one.activations)
                    for one in named.activations.layers
                },
                tuple(named.activations.token_indices),
            )
        case "component_totals":
            return results.ComponentTotalsResult(
                {
                    enum_name(DerivedScalarType, one.derived_scalar_type): _labelled(one.total)
                    for one in named.component_totals.totals
                }
            )
    raise ResponseError(f"result {named.name!r} is of a kind that this client does not know")


def prompt_tokens(message: TokenizeResponse) -> results.PromptTokens:
    """A text's tokens."""
    return results.PromptTokens(
        tuple(message.token_ids),
        tuple(message.token_strings),
        message.bos_added,
        message.prompt_adds_bos,
        tuple(message.special_token_indices),
    )


def call_info(info: call_pb2.CallInfo) -> results.CallInfo:
    """Which call it was."""
    return results.CallInfo(info.request_id, info.model_name, info.model_digest)


def timings(message: call_pb2.Timings) -> results.Timings:
    """Where the time went."""
    return results.Timings(
        message.queue_seconds,
        message.forward_seconds,
        message.backward_seconds,
        message.derive_seconds,
        message.score_seconds,
        message.serialize_seconds,
    )


def estimated_cost(message: call_pb2.EstimatedCost) -> results.EstimatedCost:
    """What a call would cost."""
    seconds = message.seconds if message.HasField("seconds") else None
    return results.EstimatedCost(message.activation_bytes, message.response_bytes, seconds)


def _array(tensor: Tensor) -> results.FloatArray:
    """A tensor of floating-point numbers.

    Raises:
        ResponseError: it is malformed or has other numbers.
    """
    array = array_from_tensor(tensor)
    if not np.issubdtype(array.dtype, np.floating):
        raise ResponseError(f"a tensor has elements of type {array.dtype} in place of floating-point numbers")
    return cast(results.FloatArray, array)


def _labelled(tensor: Tensor) -> results.LabelledArray:
    return results.LabelledArray(_array(tensor), tuple(enum_name(Dimension, one) for one in tensor.dims))


def _nodes(indices: Iterable[node_pb2.NodeIndex]) -> tuple[Node, ...]:
    return tuple(map(_node_of, map(node_pb2.NodeIndex.SerializeToString, indices)))


@lru_cache(maxsize=4096)
def _node_of(index: bytes) -> Node:
    """The node that a serialized index names: most results of a call are about the same nodes."""
    return node(node_pb2.NodeIndex.FromString(index))


def _multiple_top_k(message: result_pb2.MultipleTopKResult) -> results.MultipleTopKResult:
    groups = {}
    for group in message.groups:
        sums = {
            enum_name(DerivedScalarType, one.derived_scalar_type): _labelled(one.sum) for one in group.sums
        }
        groups[enum_name(GroupId, group.group_id)] = results.GroupResult(_array(group.activations), sums)
    nodes = _nodes(message.node_indices)
    if any(group.activations.shape != (len(nodes),) for group in groups.values()):
        raise ResponseError(f"a ranking of {len(nodes)} nodes has values for another number of them")
    return results.MultipleTopKResult(nodes, groups, tuple(message.vocab_token_strings))


def _derived_scalars(message: result_pb2.DerivedScalarsResult) -> results.DerivedScalarsResult:
    normalized = message.HasField("normalized_activations")
    return results.DerivedScalarsResult(
        nodes=_nodes(message.node_indices),
        activations=_array(message.activations),
        normalized_activations=_array(message.normalized_activations) if normalized else None,
        top_tokens=top_tokens([message.top_tokens])[0] if message.HasField("top_tokens") else None,
    )


def _derived_attention_scalars(
    message: result_pb2.DerivedAttentionScalarsResult,
) -> results.DerivedAttentionScalarsResult:
    return results.DerivedAttentionScalarsResult(
        tokens=tuple(message.tokens),
        scalars=_array(message.scalars),
        normalized_scalars=_array(message.normalized_scalars),
        totals_in=results.AttentionTotals(
            _array(message.total_scalar_in),
            _array(message.normalized_total_scalar_in),
            _array(message.max_scalar_in),
            _array(message.normalized_max_scalar_in),
        ),
        totals_out=results.AttentionTotals(
            _array(message.total_scalar_out),
            _array(message.normalized_total_scalar_out),
            _array(message.max_scalar_out),
            _array(message.normalized_max_scalar_out),
        ),
    )


def _token_pair_attribution(
    message: result_pb2.TokenPairAttributionResult,
) -> results.TokenPairAttributionResult:
    attended_to = tuple(
        results.AttendedToTokens(
            integers(one.attended_to_tokens.token_indices),
            floats(one.attended_to_tokens.attributions),
        )
        if one.HasField("attended_to_tokens")
        else None
        for one in message.node_attended_to_tokens
    )
    return results.TokenPairAttributionResult(_nodes(message.node_indices), attended_to)


def _lens(message: result_pb2.LensResult) -> results.LensResult:
    top = [
        results.LensTokens(integers(one.token_ids), tuple(one.token_strings), floats(one.logits))
        for one in message.top_tokens
    ]
    n_at = len(message.token_indices)
    if len(top) not in (0, n_at * (1 + len(message.layer_indices))):
        raise ResponseError(f"a lens has the likeliest tokens of {len(top)} places")
    rows = tuple(tuple(top[start : start + n_at]) for start in range(0, len(top), max(n_at, 1)))
    return results.LensResult(
        tuple(message.layer_indices),
        tuple(message.token_indices),
        tuple(message.vocab_tokens.token_strings),
        tuple(message.vocab_tokens.token_ids),
        _array(message.logits) if message.HasField("logits") else None,
        rows,
    )


def _scored_tokens(message: result_pb2.ScoredTokensResult) -> results.ScoredTokensResult:
    return results.ScoredTokensResult(_nodes(message.node_indices), TokenLists(message.node_top_tokens))


def _edges(message: edges_pb2.EdgesResult) -> results.EdgesResult:
    n_writers, n_readers = len(message.writers), len(message.readers)
    scores = _array(message.scores) if message.HasField("scores") else None
    if scores is not None and scores.shape != (n_writers, n_readers):
        raise ResponseError(f"scores of {n_writers} writers and {n_readers} readers come as {scores.shape}")
    if len(message.writers_before) != n_readers:
        raise ResponseError(f"{n_readers} readers come with {len(message.writers_before)} numbers of writers")
    ends = (message.edge_writers, n_writers), (message.edge_readers, n_readers)
    for indices, n_ends in ends:
        if len(indices) != len(message.edge_scores) or any(not 0 <= one < n_ends for one in indices):
            raise ResponseError("edges lead where there is nothing")
    return results.EdgesResult(
        tuple(
            results.EdgeWriter(enum_name(edges_pb2.EdgeWriterType, one.writer_type), *_layer_and_head(one))
            for one in message.writers
        ),
        tuple(
            results.EdgeReader(enum_name(edges_pb2.EdgeReaderType, one.reader_type), *_layer_and_head(one))
            for one in message.readers
        ),
        tuple(message.writers_before),
        integers(message.edge_writers),
        integers(message.edge_readers),
        floats(message.edge_scores),
        scores,
    )


def _layer_and_head(end: edges_pb2.EdgeWriter | edges_pb2.EdgeReader) -> tuple[int | None, int | None]:
    return (
        end.layer_index if end.HasField("layer_index") else None,
        end.head_index if end.HasField("head_index") else None,
    )

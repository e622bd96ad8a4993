"""From results to the wire: columns stay columns, and token ids get their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformer_debugger.v1 import derived_scalar_pb2, result_pb2
from transformer_debugger.v1.node_pb2 import NodeIndex as NodeIndexMessage

from tdb_server.domain.node import Dimension, NodeIndex, NodeType
from tdb_server.domain.results import (
    AttentionTotals,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    GroupResult,
    MultipleTopKResult,
    NamedResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.enum_names import DERIVED_SCALARS, GROUP_IDS, NODE_TYPES, PASS_TYPES
from tdb_server.service.tensor_messages import node_tensor_message, tensor_message

_TOKENS = (Dimension.SEQUENCE_TOKENS,)
_PAIRS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


def named_result_message(
    named: NamedResult, tokenizer: Tokenizer, token_ids: Sequence[int]
) -> result_pb2.NamedResult:
    """A result as a message.

    Args:
        named: the result.
        tokenizer: the model's, for the texts of tokens.
        token_ids: the prompt of the sub-request that the result belongs to.
    """
    message = result_pb2.NamedResult(name=named.name)
    match named.result:
        case MultipleTopKResult() as result:
            message.multiple_top_k.CopyFrom(_multiple_top_k(result, tokenizer))
        case ScoredTokensResult() as result:
            _put_scored_tokens(message.scored_tokens, result, tokenizer)
        case TokenPairAttributionResult() as result:
            message.token_pair_attribution.CopyFrom(_token_pair_attribution(result))
        case DerivedScalarsResult() as result:
            message.derived_scalars.CopyFrom(_derived_scalars(result, tokenizer))
        case DerivedAttentionScalarsResult() as result:
            tokens = tokenizer.token_strings(token_ids)
            message.derived_attention_scalars.CopyFrom(_derived_attention_scalars(result, tokens))
    return message


def _node_messages(nodes: Sequence[NodeIndex]) -> list[NodeIndexMessage]:
    return [_node_message(node) for node in nodes]


@lru_cache(maxsize=4096)
def _node_message(node: NodeIndex) -> NodeIndexMessage:
    """To be copied, not changed: most results of a call are about the same nodes."""
    return NodeIndexMessage(
        node_type=NODE_TYPES.numbers[node.node_type],
        layer_index=node.layer_index,
        tensor_indices=node.tensor_indices,
        pass_type=PASS_TYPES.numbers[node.pass_type],
    )


def _multiple_top_k(result: MultipleTopKResult, tokenizer: Tokenizer) -> result_pb2.MultipleTopKResult:
    are_tokens = bool(result.nodes) and all(node.node_type is NodeType.VOCAB_TOKEN for node in result.nodes)
    return result_pb2.MultipleTopKResult(
        node_indices=_node_messages(result.nodes),
        groups=[_group(result.groups[group], GROUP_IDS.numbers[group]) for group in result.groups],
        vocab_token_strings=(
            tokenizer.token_strings(node.tensor_indices[-1] for node in result.nodes) if are_tokens else ()
        ),
    )


def _group(group: GroupResult, group_id: derived_scalar_pb2.GroupId.ValueType) -> result_pb2.GroupResult:
    return result_pb2.GroupResult(
        group_id=group_id,
        activations=node_tensor_message(group.activations),
        sums=[
            result_pb2.DerivedScalarSum(
                derived_scalar_type=DERIVED_SCALARS.numbers[scalar],
                sum=tensor_message(total.array, total.dimensions),
            )
            for scalar, total in group.sums.items()
        ],
    )


def _put_scored_tokens(
    message: result_pb2.ScoredTokensResult, result: ScoredTokensResult, tokenizer: Tokenizer
) -> None:
    """Fills the message where it stands: the thousands of numbers in it are copied once."""
    message.node_indices.extend(_node_messages(result.nodes))
    columns = _columns(result.tokens)
    for row in result.rows.tolist():
        node = message.node_top_tokens.add()
        if row >= 0:
            _put_top_tokens(node.top_tokens, columns, row, tokenizer)


Columns = tuple[list[list[int]], list[list[float]], list[list[float]]]
"""Ids, scalars and normalized scalars of tokens, row by row."""


def _columns(tokens: TopTokens) -> tuple[Columns, Columns]:
    """The top and the bottom, as Python's numbers."""
    return (
        (tokens.top_ids.tolist(), tokens.top_scalars.tolist(), tokens.top_normalized.tolist()),
        (tokens.bottom_ids.tolist(), tokens.bottom_scalars.tolist(), tokens.bottom_normalized.tolist()),
    )


def _put_top_tokens(
    message: result_pb2.TopTokens, columns: tuple[Columns, Columns], row: int, tokenizer: Tokenizer
) -> None:
    for ranked, (ids, scalars, normalized) in zip((message.top, message.bottom), columns, strict=True):
        ranked.SetInParent()  # no tokens are something else than no list
        ranked.token_ids.extend(ids[row])
        ranked.tokens.extend(tokenizer.token_strings(ids[row]))
        ranked.scalars.extend(scalars[row])
        ranked.normalized_scalars.extend(normalized[row])


def _token_pair_attribution(result: TokenPairAttributionResult) -> result_pb2.TokenPairAttributionResult:
    indices, attributions = result.token_indices.tolist(), result.attributions.tolist()
    return result_pb2.TokenPairAttributionResult(
        node_indices=_node_messages(result.nodes),
        node_attended_to_tokens=[
            result_pb2.NodeAttendedToTokens(
                attended_to_tokens=result_pb2.AttendedToTokens(
                    token_indices=indices[row], attributions=attributions[row]
                )
                if row >= 0
                else None
            )
            for row in result.rows.tolist()
        ],
    )


def _derived_scalars(result: DerivedScalarsResult, tokenizer: Tokenizer) -> result_pb2.DerivedScalarsResult:
    normalized = result.normalized_activations
    message = result_pb2.DerivedScalarsResult(
        node_indices=_node_messages(result.nodes),
        activations=tensor_message(result.activations, _TOKENS),
        normalized_activations=None if normalized is None else tensor_message(normalized, _TOKENS),
    )
    if result.top_tokens is not None:
        _put_top_tokens(message.top_tokens, _columns(result.top_tokens), 0, tokenizer)
    return message


def _derived_attention_scalars(
    result: DerivedAttentionScalarsResult, tokens: Sequence[str]
) -> result_pb2.DerivedAttentionScalarsResult:
    message = result_pb2.DerivedAttentionScalarsResult(
        tokens=tokens,
        scalars=tensor_message(result.scalars, _PAIRS),
        normalized_scalars=tensor_message(result.normalized_scalars, _PAIRS),
    )
    into: AttentionTotals = result.totals_in
    message.total_scalar_in.CopyFrom(tensor_message(into.total, _TOKENS))
    message.normalized_total_scalar_in.CopyFrom(tensor_message(into.normalized_total, _TOKENS))
    message.max_scalar_in.CopyFrom(tensor_message(into.maximum, _TOKENS))
    message.normalized_max_scalar_in.CopyFrom(tensor_message(into.normalized_maximum, _TOKENS))
    out: AttentionTotals = result.totals_out
    message.total_scalar_out.CopyFrom(tensor_message(out.total, _TOKENS))
    message.normalized_total_scalar_out.CopyFrom(tensor_message(out.normalized_total, _TOKENS))
    message.max_scalar_out.CopyFrom(tensor_message(out.maximum, _TOKENS))
    message.normalized_max_scalar_out.CopyFrom(tensor_message(out.normalized_maximum, _TOKENS))
    return message

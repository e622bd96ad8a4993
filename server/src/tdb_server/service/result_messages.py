"""From results to the wire: columns stay columns, and token ids get their text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
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
            message.scored_tokens.CopyFrom(_scored_tokens(result, tokenizer))
        case TokenPairAttributionResult() as result:
            message.token_pair_attribution.CopyFrom(_token_pair_attribution(result))
        case DerivedScalarsResult() as result:
            message.derived_scalars.CopyFrom(_derived_scalars(result, tokenizer))
        case DerivedAttentionScalarsResult() as result:
            tokens = tokenizer.token_strings(token_ids)
            message.derived_attention_scalars.CopyFrom(_derived_attention_scalars(result, tokens))
    return message


def _node_messages(nodes: Sequence[NodeIndex]) -> list[NodeIndexMessage]:
    return [
        NodeIndexMessage(
            node_type=NODE_TYPES.numbers[node.node_type],
            layer_index=node.layer_index,
            tensor_indices=node.tensor_indices,
            pass_type=PASS_TYPES.numbers[node.pass_type],
        )
        for node in nodes
    ]


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


def _scored_tokens(result: ScoredTokensResult, tokenizer: Tokenizer) -> result_pb2.ScoredTokensResult:
    rows = _top_token_messages(result.tokens, tokenizer)
    return result_pb2.ScoredTokensResult(
        node_indices=_node_messages(result.nodes),
        node_top_tokens=[
            result_pb2.NodeTopTokens(top_tokens=rows[row] if row >= 0 else None)
            for row in result.rows.tolist()
        ],
    )


def _top_token_messages(tokens: TopTokens, tokenizer: Tokenizer) -> list[result_pb2.TopTokens]:
    """One message per row."""
    tops = _ranked_messages(tokens.top_ids, tokens.top_scalars, tokens.top_normalized, tokenizer)
    bottoms = _ranked_messages(tokens.bottom_ids, tokens.bottom_scalars, tokens.bottom_normalized, tokenizer)
    return [result_pb2.TopTokens(top=top, bottom=bottom) for top, bottom in zip(tops, bottoms, strict=True)]


def _ranked_messages(
    ids: npt.NDArray[np.integer],
    scalars: npt.NDArray[np.floating],
    normalized: npt.NDArray[np.floating],
    tokenizer: Tokenizer,
) -> list[result_pb2.RankedTokens]:
    columns = zip(ids.tolist(), scalars.tolist(), normalized.tolist(), strict=True)
    return [
        result_pb2.RankedTokens(
            token_ids=row_ids,
            tokens=tokenizer.token_strings(row_ids),
            scalars=row_scalars,
            normalized_scalars=row_normalized,
        )
        for row_ids, row_scalars, row_normalized in columns
    ]


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
    return result_pb2.DerivedScalarsResult(
        node_indices=_node_messages(result.nodes),
        activations=tensor_message(result.activations, _TOKENS),
        normalized_activations=None if normalized is None else tensor_message(normalized, _TOKENS),
        top_tokens=(
            None if result.top_tokens is None else _top_token_messages(result.top_tokens, tokenizer)[0]
        ),
    )


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

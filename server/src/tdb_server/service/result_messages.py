"""From results to the wire: columns stay columns, and token ids get their text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transformer_debugger.v1 import edges_pb2, result_pb2
from transformer_debugger.v1.node_pb2 import NodeIndex as NodeIndexMessage

from tdb_server.domain.edges import EdgesResult
from tdb_server.domain.node import Dimension, Nodes, NodeType
from tdb_server.domain.results import (
    ActivationsResult,
    ComponentTotalsResult,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    FloatArray,
    IntArray,
    LensResult,
    MultipleTopKResult,
    NamedResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
    TopTokens,
)
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.enum_names import (
    DERIVED_SCALARS,
    EDGE_READER_TYPES,
    EDGE_WRITER_TYPES,
    GROUP_IDS,
    NODE_TYPES,
    PASS_TYPES,
)
from tdb_server.service.tensor_messages import put_edge_tensor, put_node_tensor, put_tensor

_TOKENS = (Dimension.SEQUENCE_TOKENS,)
_LENS = (Dimension.LAYERS, Dimension.SEQUENCE_TOKENS, Dimension.VOCAB_SIZE)
_PAIRS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


def put_named_result(
    message: result_pb2.NamedResult, named: NamedResult, tokenizer: Tokenizer, token_ids: Sequence[int]
) -> None:
    """Puts a result into a message.

    All messages are filled where they stand: to make the parts first would copy their thousands of numbers.

    Args:
        message: an empty one.
        named: the result.
        tokenizer: the model's, for the texts of tokens.
        token_ids: the prompt of the sub-request that the result belongs to.
    """
    message.name = named.name
    match named.result:
        case MultipleTopKResult() as result:
            _put_multiple_top_k(message.multiple_top_k, result, tokenizer)
        case ScoredTokensResult() as result:
            _put_scored_tokens(message.scored_tokens, result, tokenizer)
        case TokenPairAttributionResult() as result:
            _put_token_pair_attribution(message.token_pair_attribution, result)
        case DerivedScalarsResult() as result:
            _put_derived_scalars(message.derived_scalars, result, tokenizer)
        case LensResult() as result:
            _put_lens(message.lens, result, tokenizer)
        case ActivationsResult() as result:
            message.activations.token_indices.extend(result.token_indices)
            for layer_index, found in result.layers:
                of_layer = message.activations.layers.add(layer_index=layer_index)
                put_tensor(of_layer.activations, found.array, found.dimensions)
        case ComponentTotalsResult() as result:
            message.component_totals.SetInParent()
            for scalar, total in result.totals.items():
                total_message = message.component_totals.totals.add(
                    derived_scalar_type=DERIVED_SCALARS.numbers[scalar]
                )
                put_tensor(total_message.total, total.array, total.dimensions)
        case DerivedAttentionScalarsResult() as result:
            tokens = tokenizer.token_strings(token_ids)
            _put_derived_attention_scalars(message.derived_attention_scalars, result, tokens)
        case EdgesResult() as result:
            _put_edges(message.edges, result)


@lru_cache(maxsize=32)
def _node_messages(nodes: Nodes) -> Sequence[NodeIndexMessage]:
    """Messages to be copied, not changed: they are remembered, as most results are about the same nodes."""
    return [
        NodeIndexMessage(
            node_type=NODE_TYPES.numbers[node.node_type],
            layer_index=node.layer_index,
            tensor_indices=node.tensor_indices,
            pass_type=PASS_TYPES.numbers[node.pass_type],
        )
        for node in nodes
    ]


def _put_multiple_top_k(
    message: result_pb2.MultipleTopKResult, result: MultipleTopKResult, tokenizer: Tokenizer
) -> None:
    message.SetInParent()  # no nodes and no groups are something else than no result
    message.node_indices.extend(_node_messages(result.nodes))
    for group_id, group in result.groups.items():
        of_group = message.groups.add(group_id=GROUP_IDS.numbers[group_id])
        put_node_tensor(of_group.activations, group.activations)
        for scalar, total in group.sums.items():
            of_scalar = of_group.sums.add(derived_scalar_type=DERIVED_SCALARS.numbers[scalar])
            put_tensor(of_scalar.sum, total.array, total.dimensions)
    if all(node.node_type is NodeType.VOCAB_TOKEN for node in result.nodes):
        token_ids = [node.tensor_indices[-1] for node in result.nodes]
        message.vocab_token_strings.extend(tokenizer.token_strings(token_ids))


def _put_scored_tokens(
    message: result_pb2.ScoredTokensResult, result: ScoredTokensResult, tokenizer: Tokenizer
) -> None:
    message.SetInParent()
    message.node_indices.extend(_node_messages(result.nodes))
    columns = _columns(result.tokens, tokenizer)
    for row in result.rows.tolist():
        node = message.node_top_tokens.add()
        if row >= 0:
            _put_top_tokens(node.top_tokens, columns, row)


Columns = tuple[list[list[int]], list[list[str]], list[list[float]], list[list[float]]]
"""Ids, texts, scalars and normalized scalars of tokens, row by row."""


def _columns(tokens: TopTokens, tokenizer: Tokenizer) -> tuple[Columns, Columns]:
    """The top and the bottom, as Python's numbers and strings."""

    def of_end(ids: IntArray, scalars: FloatArray, normalized: FloatArray) -> Columns:
        return ids.tolist(), tokenizer.token_string_rows(ids), scalars.tolist(), normalized.tolist()

    return (
        of_end(tokens.top_ids, tokens.top_scalars, tokens.top_normalized),
        of_end(tokens.bottom_ids, tokens.bottom_scalars, tokens.bottom_normalized),
    )


def _put_top_tokens(message: result_pb2.TopTokens, columns: tuple[Columns, Columns], row: int) -> None:
    for ranked, (ids, strings, scalars, normalized) in zip(
        (message.top, message.bottom), columns, strict=True
    ):
        ranked.SetInParent()  # no tokens are something else than no list
        ranked.token_ids.extend(ids[row])
        ranked.tokens.extend(strings[row])
        ranked.scalars.extend(scalars[row])
        ranked.normalized_scalars.extend(normalized[row])


def _put_token_pair_attribution(
    message: result_pb2.TokenPairAttributionResult, result: TokenPairAttributionResult
) -> None:
    message.SetInParent()
    message.node_indices.extend(_node_messages(result.nodes))
    indices, attributions = result.token_indices.tolist(), result.attributions.tolist()
    for row in result.rows.tolist():
        node = message.node_attended_to_tokens.add()
        if row >= 0:
            node.attended_to_tokens.SetInParent()
            node.attended_to_tokens.token_indices.extend(indices[row])
            node.attended_to_tokens.attributions.extend(attributions[row])


def _put_derived_scalars(
    message: result_pb2.DerivedScalarsResult, result: DerivedScalarsResult, tokenizer: Tokenizer
) -> None:
    message.node_indices.extend(_node_messages(result.nodes))
    put_tensor(message.activations, result.activations, _TOKENS)
    if result.normalized_activations is not None:
        put_tensor(message.normalized_activations, result.normalized_activations, _TOKENS)
    if result.top_tokens is not None:
        _put_top_tokens(message.top_tokens, _columns(result.top_tokens, tokenizer), 0)


def _put_lens(message: result_pb2.LensResult, result: LensResult, tokenizer: Tokenizer) -> None:
    message.layer_indices.extend(result.layers)
    message.token_indices.extend(result.token_indices)
    if result.vocabulary_tokens:
        message.vocab_tokens.token_ids.extend(result.vocabulary_tokens)
        message.vocab_tokens.token_strings.extend(tokenizer.token_strings(result.vocabulary_tokens))
        put_tensor(message.logits, result.logits, _LENS)
    if not result.top_ids.shape[1]:
        return
    rows = result.top_ids.tolist(), tokenizer.token_string_rows(result.top_ids), result.top_logits.tolist()
    for ids, strings, logits in zip(*rows, strict=True):
        message.top_tokens.add(token_ids=ids, token_strings=strings, logits=logits)


def _put_derived_attention_scalars(
    message: result_pb2.DerivedAttentionScalarsResult,
    result: DerivedAttentionScalarsResult,
    tokens: Sequence[str],
) -> None:
    message.tokens.extend(tokens)
    put_tensor(message.scalars, result.scalars, _PAIRS)
    put_tensor(message.normalized_scalars, result.normalized_scalars, _PAIRS)
    for side, totals in (("in", result.totals_in), ("out", result.totals_out)):
        put_tensor(getattr(message, f"total_scalar_{side}"), totals.total, _TOKENS)
        put_tensor(getattr(message, f"normalized_total_scalar_{side}"), totals.normalized_total, _TOKENS)
        put_tensor(getattr(message, f"max_scalar_{side}"), totals.maximum, _TOKENS)
        put_tensor(getattr(message, f"normalized_max_scalar_{side}"), totals.normalized_maximum, _TOKENS)


def _put_edges(message: edges_pb2.EdgesResult, result: EdgesResult) -> None:
    for writer in result.writers:
        message.writers.add(
            writer_type=EDGE_WRITER_TYPES.numbers[writer.type],
            layer_index=writer.layer_index,
            head_index=writer.head_index,
        )
    for reader in result.readers:
        message.readers.add(
            reader_type=EDGE_READER_TYPES.numbers[reader.type],
            layer_index=reader.layer_index,
            head_index=reader.head_index,
        )
    message.writers_before.extend(result.writers_before)
    message.edge_writers.extend(result.edge_writers.tolist())
    message.edge_readers.extend(result.edge_readers.tolist())
    message.edge_scores.extend(result.edge_scores.tolist())
    if result.scores is not None:
        put_edge_tensor(message.scores, result.scores)

"""Checks of what is traced: the node itself, the way into a head, and what can see what.

A value traced through V is projected onto what its downstream node reads from the residual stream. The head
writes at its query token, after its layer's attention. What comes before that, or reads the residual stream
only at other tokens, sees nothing of the write, so that the objective would be zero.
"""

from __future__ import annotations

from collections.abc import Iterator

from tdb_server.domain.axes import specific_node_type
from tdb_server.domain.hook_point import NODE_HOOK_POINTS
from tdb_server.domain.index_validation import node_violations
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import NodeType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AttentionTraceType, Trace
from tdb_server.errors import FieldViolation

_V = AttentionTraceType.V


def trace_violations(
    trace: Trace, info: ModelInfo, n_tokens: int | None, path: str, downstream_path: str
) -> Iterator[FieldViolation]:
    """What keeps a trace, with the downstream node under a path of its own, from being an objective."""
    upstream = list(_single_trace_violations(trace, info, n_tokens, path))
    yield from upstream
    if trace.downstream is None:
        return
    if trace.attention_trace_type is not _V:
        if not any(one.reason is Reason.ATTENTION_TRACE_TYPE_REQUIRED for one in upstream):
            yield FieldViolation(
                downstream_path,
                "only a head traced through V can have a downstream node",
                Reason.DOWNSTREAM_WITHOUT_V,
            )
        return
    downstream = list(_single_trace_violations(trace.downstream, info, n_tokens, downstream_path))
    yield from downstream
    if trace.downstream.attention_trace_type is _V:
        yield FieldViolation(
            f"{downstream_path}.attention_trace_type",
            "the downstream node cannot be traced through V itself",
            Reason.DOWNSTREAM_IS_V,
        )
    elif trace.downstream.downstream is not None:
        yield FieldViolation(
            f"{downstream_path}.downstream_trace_config",
            "only a head traced through V can have a downstream node",
            Reason.DOWNSTREAM_WITHOUT_V,
        )
    elif not upstream and not downstream:
        yield from _order_violations(trace, trace.downstream, info, downstream_path)


def _single_trace_violations(
    trace: Trace, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    node, node_type = trace.node, trace.node.node_type
    if node_type in NODE_HOOK_POINTS:
        yield from node_violations(node, info, n_tokens, f"{path}.node_index")
    else:
        yield FieldViolation(
            f"{path}.node_index.node_type",
            f"nodes of type {node_type.value} cannot be traced; neurons, attention heads and latents can",
            Reason.NODE_NOT_TRACEABLE,
        )
    type_path = f"{path}.attention_trace_type"
    if node_type is NodeType.ATTENTION_HEAD:
        if trace.attention_trace_type is None:
            yield FieldViolation(
                type_path,
                "say whether the head is traced through Q, K, QK or V",
                Reason.ATTENTION_TRACE_TYPE_REQUIRED,
            )
    elif trace.attention_trace_type is not None:
        yield FieldViolation(
            type_path,
            f"only attention heads have one, not a {node_type.value}",
            Reason.ATTENTION_TRACE_TYPE_NOT_ALLOWED,
        )
    if trace.attention_trace_type is _V and trace.post_act:
        yield FieldViolation(
            f"{path}.pre_or_post_act", "a value has no activation function", Reason.FIELD_NOT_ALLOWED
        )


def _order_violations(head: Trace, downstream: Trace, info: ModelInfo, path: str) -> Iterator[FieldViolation]:
    head_layer, layer = head.node.layer_index, downstream.node.layer_index
    if head_layer is None or layer is None:
        return
    node_type = specific_node_type(downstream.node.node_type, info)
    reads_behind_head = _is_behind_attention(node_type, info) and not (
        info.is_parallel and node_type is not NodeType.RESID_POST_MLP_AUTOENCODER_LATENT
    )
    first_layer = head_layer if reads_behind_head else head_layer + 1
    if layer < first_layer:
        yield FieldViolation(
            f"{path}.node_index.layer_index",
            f"the downstream node is in layer {layer}, before what the head of layer {head_layer} writes; "
            f"it must be in layer {first_layer} or later",
            Reason.DOWNSTREAM_NOT_AFTER_UPSTREAM,
        )
    written_at = head.node.tensor_indices[0]
    read_at = _tokens_read(downstream, info)
    if written_at not in read_at:
        tokens = " or ".join(str(token) for token in read_at)
        if isinstance(read_at, range):
            tokens = f"{read_at[0]} to {read_at[-1]}"
        yield FieldViolation(
            f"{path}.node_index.tensor_indices",
            f"the head writes at token {written_at}, but the downstream node reads the residual stream at "
            f"token {tokens}",
            Reason.DOWNSTREAM_NOT_AFTER_UPSTREAM,
        )


def _is_behind_attention(node_type: NodeType, info: ModelInfo) -> bool:
    """Whether a node reads, at its own token alone, what its layer's attention has written."""
    return specific_node_type(node_type, info) not in (
        NodeType.ATTENTION_HEAD,
        NodeType.ATTENTION_AUTOENCODER_LATENT,
    )


def _tokens_read(trace: Trace, info: ModelInfo) -> tuple[int, ...] | range:
    """The tokens at which the residual stream before the node moves the node's own objective."""
    token, *others = trace.node.tensor_indices
    match trace.attention_trace_type:
        case AttentionTraceType.Q:
            return (token,)
        case AttentionTraceType.K:
            return (others[0],)
        case AttentionTraceType.QK:
            return (token, others[0])
        case _:
            # An attention latent reads every token that its own attends to.
            return (token,) if _is_behind_attention(trace.node.node_type, info) else range(token + 1)

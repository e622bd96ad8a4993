"""The residual stream: the order of writes to it, and where objectives that are no loss of logits start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import InferenceSpec, Trace

# The order of writes to the residual stream: 0 for the embedding, then four of every layer: attention's, that
# of a dictionary of the stream after attention, the MLP's, that of a dictionary of the stream after it.
# An objective that starts from a stream sees what was written at its depth or before.


def attention_depth(layer_index: int) -> int:
    """Of attention's write."""
    return 4 * layer_index + 1


def mlp_depth(layer_index: int) -> int:
    """Of the MLP's write."""
    return 4 * layer_index + 3


def write_depth(hook_point: HookPoint) -> Callable[[int], int]:
    """From a layer index to the depth of this hook point's write."""
    before_mlp = (
        HookPoint.RESID_POST_ATTN,
        HookPoint.RESID_DELTA_ATTN,
        HookPoint.ATTN_QK_PROBS,
        HookPoint.ATTN_V_OUT,
    )
    return attention_depth if hook_point in before_mlp else mlp_depth


def latent_depth(site: Site, layer_index: int) -> int:
    """Of the write of a dictionary's latents."""
    is_before_mlp = site.is_attention or site is Site.RESID_POST_ATTN
    return (attention_depth if is_before_mlp else mlp_depth)(layer_index) + site.is_stream


@dataclass(frozen=True)
class Stream:
    """The residual stream that an objective starts from.

    Attributes:
        hook_point: which.
        layer_index: its layer; None for the embedding.
        is_behind_dictionary: whether what is set of its dictionary's latents is seen. Only those latents
            themselves read the stream before it.
    """

    hook_point: HookPoint
    layer_index: int | None
    is_behind_dictionary: bool = True

    @property
    def depth(self) -> int:
        """Writes at this depth or before are in it."""
        if self.layer_index is None:
            return 0
        return write_depth(self.hook_point)(self.layer_index) + self.is_behind_dictionary


_STREAMS = {
    NodeType.RESID_POST_ATTN_AUTOENCODER_LATENT: HookPoint.RESID_POST_ATTN,
    NodeType.RESID_POST_MLP_AUTOENCODER_LATENT: HookPoint.RESID_POST_MLP,
}


def trace_stream(trace: Trace, *, is_parallel: bool) -> Stream:
    """Before the MLP, or before the layer for attention; for latents of the stream, that stream.

    Args:
        trace: of a node.
        is_parallel: whether MLPs too read the stream before their layer.
    """
    layer_index, node_type = trace.node.layer_index, trace.node.node_type
    assert layer_index is not None
    if node_type in _STREAMS:
        return Stream(_STREAMS[node_type], layer_index, is_behind_dictionary=False)
    of_attention = (NodeType.ATTENTION_HEAD, NodeType.ATTENTION_AUTOENCODER_LATENT)
    if node_type not in of_attention and not is_parallel:
        return Stream(HookPoint.RESID_POST_ATTN, layer_index)
    if layer_index:
        return Stream(HookPoint.RESID_POST_MLP, layer_index - 1)
    return Stream(HookPoint.RESID_POST_EMB, None)


def objective_stream(inference: InferenceSpec, trace: Trace | None, *, is_parallel: bool) -> Stream | None:
    """The residual stream that a trace, or a loss along a direction, is of; None for a loss of logits."""
    if trace is not None:
        return trace_stream(trace, is_parallel=is_parallel)
    direction = inference.loss and inference.loss.direction
    return Stream(direction.hook_point, direction.layer_index) if direction else None

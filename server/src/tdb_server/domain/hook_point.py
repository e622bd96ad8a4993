"""Hook points: every tensor of the forward pass that can be read, ablated or differentiated.

A hook point is per sequence: its axes leave out the batch. The wire calls hook points activation locations.
"""

from __future__ import annotations

from enum import Enum
from typing import Self

from tdb_server.domain.node import LATENT_NODE_TYPES, Dimension, NodeType

_TOKENS = Dimension.SEQUENCE_TOKENS
_KEYS = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_HEADS = Dimension.ATTN_HEADS
_CHANNELS = (_TOKENS, Dimension.RESIDUAL_STREAM_CHANNELS)
_LATENTS = (_TOKENS, Dimension.AUTOENCODER_LATENTS)


class HookPoint(Enum):
    """A named tensor of the forward pass.

    Attributes:
        dimensions: its axes, in the order in which clients index them.
        node_type: what a cell belongs to.
        is_per_layer: whether there is one in every layer.
    """

    _value_: str
    dimensions: tuple[Dimension, ...]
    node_type: NodeType
    is_per_layer: bool

    def __new__(
        cls, value: str, dimensions: tuple[Dimension, ...], node_type: NodeType, is_per_layer: bool = True
    ) -> Self:
        """A member of that value."""
        member = object.__new__(cls)
        member._value_ = value
        member.dimensions, member.node_type, member.is_per_layer = dimensions, node_type, is_per_layer
        return member

    RESID_POST_EMB = "resid.post_emb", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL, False
    ATTN_LN_SCALE = "attn_ln.scale", (_TOKENS, Dimension.SINGLE), NodeType.LAYER
    ATTN_Q = "attn.q", (_TOKENS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL
    ATTN_K = "attn.k", (_KEYS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL
    ATTN_V = "attn.v", (_KEYS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL
    ATTN_QK_LOGITS = "attn.qk_logits", (_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD
    ATTN_QK_PROBS = "attn.qk_probs", (_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD
    ATTN_V_OUT = "attn.v_out", (_TOKENS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL
    ATTN_POST_LN_SCALE = "attn_post_ln.scale", (_TOKENS, Dimension.SINGLE), NodeType.LAYER
    RESID_DELTA_ATTN = "resid.delta_attn", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    RESID_POST_ATTN = "resid.post_attn", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    MLP_LN_SCALE = "mlp_ln.scale", (_TOKENS, Dimension.SINGLE), NodeType.LAYER
    MLP_PRE_ACT = "mlp.pre_act", (_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON
    MLP_POST_ACT = "mlp.post_act", (_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON
    MLP_POST_LN_SCALE = "mlp_post_ln.scale", (_TOKENS, Dimension.SINGLE), NodeType.LAYER
    RESID_DELTA_MLP = "resid.delta_mlp", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    RESID_POST_MLP = "resid.post_mlp", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    RESID_LN_F_SCALE = "resid.ln_f.scale", (_TOKENS, Dimension.SINGLE), NodeType.LAYER, False
    LOGITS = "logits", (_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, False
    ONLINE_AUTOENCODER_LATENT = "online_autoencoder_latent", _LATENTS, NodeType.AUTOENCODER_LATENT
    ONLINE_MLP_AUTOENCODER_LATENT = "online_mlp_autoencoder_latent", _LATENTS, NodeType.MLP_AUTOENCODER_LATENT
    ONLINE_ATTENTION_AUTOENCODER_LATENT = (
        "online_attention_autoencoder_latent",
        _LATENTS,
        NodeType.ATTENTION_AUTOENCODER_LATENT,
    )
    ONLINE_AUTOENCODER_ERROR = "online_autoencoder_error", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    ONLINE_MLP_AUTOENCODER_ERROR = "online_mlp_autoencoder_error", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL
    ONLINE_ATTENTION_AUTOENCODER_ERROR = (
        "online_attention_autoencoder_error",
        _CHANNELS,
        NodeType.RESIDUAL_STREAM_CHANNEL,
    )
    ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT = (
        "online_resid_post_attn_autoencoder_latent",
        _LATENTS,
        NodeType.RESID_POST_ATTN_AUTOENCODER_LATENT,
    )
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ERROR = (
        "online_resid_post_attn_autoencoder_error",
        _CHANNELS,
        NodeType.RESIDUAL_STREAM_CHANNEL,
    )
    ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT = (
        "online_resid_post_mlp_autoencoder_latent",
        _LATENTS,
        NodeType.RESID_POST_MLP_AUTOENCODER_LATENT,
    )
    ONLINE_RESID_POST_MLP_AUTOENCODER_ERROR = (
        "online_resid_post_mlp_autoencoder_error",
        _CHANNELS,
        NodeType.RESIDUAL_STREAM_CHANNEL,
    )
    ONLINE_MLP_TRANSCODER_LATENT = "online_mlp_transcoder_latent", _LATENTS, NodeType.MLP_TRANSCODER_LATENT
    ONLINE_MLP_TRANSCODER_ERROR = "online_mlp_transcoder_error", _CHANNELS, NodeType.RESIDUAL_STREAM_CHANNEL


DICTIONARY_HOOK_POINTS = {
    node_type: (
        HookPoint[f"ONLINE_{node_type.name}"],
        HookPoint[f"ONLINE_{node_type.name.removesuffix('LATENT')}ERROR"],
    )
    for node_type in LATENT_NODE_TYPES
}
"""By the node type of a dictionary's latents: where they are read, and what it fails to reconstruct."""
LATENT_TYPES = {
    hook_point: node_type for node_type, pair in DICTIONARY_HOOK_POINTS.items() for hook_point in pair
}
"""The same the other way round. These hook points exist only with a dictionary."""
NODE_HOOK_POINTS = {
    NodeType.ATTENTION_HEAD: HookPoint.ATTN_QK_PROBS,
    NodeType.MLP_NEURON: HookPoint.MLP_POST_ACT,
    **{node_type: latents for node_type, (latents, _) in DICTIONARY_HOOK_POINTS.items()},
}
"""The nodes that can be ablated or traced, and the hook point whose cells they are."""
WHOLE_HOOK_POINTS = {
    NodeType.WHOLE_HEAD: HookPoint.ATTN_V_OUT,
    NodeType.WHOLE_MLP: HookPoint.RESID_DELTA_MLP,
}
"""Nodes that are vectors at a hook point. They can be ablated, and not traced."""
ABLATABLE_HOOK_POINTS = NODE_HOOK_POINTS | WHOLE_HOOK_POINTS
"""All nodes that can be ablated."""

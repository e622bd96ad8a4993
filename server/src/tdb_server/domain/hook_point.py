"""Hook points: every tensor of the forward pass that can be read, ablated or differentiated.

A hook point is per sequence: the shapes below leave out the batch. `is_per_layer` tells whether there is one
in every layer. The wire calls hook points activation locations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tdb_server.domain.node import Dimension, NodeType

_TOKENS = Dimension.SEQUENCE_TOKENS
_KEYS = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_HEADS = Dimension.ATTN_HEADS
_CHANNELS = Dimension.RESIDUAL_STREAM_CHANNELS


class HookPoint(Enum):
    """A named tensor of the forward pass."""

    RESID_POST_EMB = "resid.post_emb"
    ATTN_LN_SCALE = "attn_ln.scale"
    ATTN_Q = "attn.q"
    ATTN_K = "attn.k"
    ATTN_V = "attn.v"
    ATTN_QK_LOGITS = "attn.qk_logits"
    ATTN_QK_PROBS = "attn.qk_probs"
    ATTN_V_OUT = "attn.v_out"
    RESID_DELTA_ATTN = "resid.delta_attn"
    RESID_POST_ATTN = "resid.post_attn"
    MLP_LN_SCALE = "mlp_ln.scale"
    MLP_PRE_ACT = "mlp.pre_act"
    MLP_POST_ACT = "mlp.post_act"
    RESID_DELTA_MLP = "resid.delta_mlp"
    RESID_POST_MLP = "resid.post_mlp"
    RESID_LN_F_SCALE = "resid.ln_f.scale"
    LOGITS = "logits"
    ONLINE_AUTOENCODER_LATENT = "online_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_LATENT = "online_mlp_autoencoder_latent"
    ONLINE_ATTENTION_AUTOENCODER_LATENT = "online_attention_autoencoder_latent"
    ONLINE_AUTOENCODER_ERROR = "online_autoencoder_error"
    ONLINE_MLP_AUTOENCODER_ERROR = "online_mlp_autoencoder_error"
    ONLINE_ATTENTION_AUTOENCODER_ERROR = "online_attention_autoencoder_error"
    ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT = "online_resid_post_attn_autoencoder_latent"
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ERROR = "online_resid_post_attn_autoencoder_error"
    ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT = "online_resid_post_mlp_autoencoder_latent"
    ONLINE_RESID_POST_MLP_AUTOENCODER_ERROR = "online_resid_post_mlp_autoencoder_error"
    ONLINE_MLP_TRANSCODER_LATENT = "online_mlp_transcoder_latent"
    ONLINE_MLP_TRANSCODER_ERROR = "online_mlp_transcoder_error"


@dataclass(frozen=True, slots=True)
class HookPointShape:
    """The axes of a hook point, in the order in which clients index them."""

    dimensions: tuple[Dimension, ...]
    node_type: NodeType
    is_per_layer: bool = True


HOOK_POINT_SHAPES: dict[HookPoint, HookPointShape] = {
    HookPoint.RESID_POST_EMB: HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL, False),
    HookPoint.ATTN_LN_SCALE: HookPointShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER),
    HookPoint.ATTN_Q: HookPointShape((_TOKENS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL),
    HookPoint.ATTN_K: HookPointShape((_KEYS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL),
    HookPoint.ATTN_V: HookPointShape((_KEYS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL),
    HookPoint.ATTN_QK_LOGITS: HookPointShape((_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD),
    HookPoint.ATTN_QK_PROBS: HookPointShape((_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD),
    HookPoint.ATTN_V_OUT: HookPointShape((_TOKENS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL),
    HookPoint.RESID_DELTA_ATTN: HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    HookPoint.RESID_POST_ATTN: HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    HookPoint.MLP_LN_SCALE: HookPointShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER),
    HookPoint.MLP_PRE_ACT: HookPointShape((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON),
    HookPoint.MLP_POST_ACT: HookPointShape((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON),
    HookPoint.RESID_DELTA_MLP: HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    HookPoint.RESID_POST_MLP: HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    HookPoint.RESID_LN_F_SCALE: HookPointShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER, False),
    HookPoint.LOGITS: HookPointShape((_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, False),
}
DICTIONARY_HOOK_POINTS = {
    node_type: (
        HookPoint[f"ONLINE_{node_type.name}"],
        HookPoint[f"ONLINE_{node_type.name.removesuffix('LATENT')}ERROR"],
    )
    for node_type in NodeType
    if node_type.is_latent
}
"""By the node type of a dictionary's latents: where they are read, and what it fails to reconstruct."""
LATENT_TYPES = {
    hook_point: node_type for node_type, pair in DICTIONARY_HOOK_POINTS.items() for hook_point in pair
}
"""The same the other way round. These hook points exist only with a dictionary."""
for _node_type, (_latent, _error) in DICTIONARY_HOOK_POINTS.items():
    HOOK_POINT_SHAPES[_latent] = HookPointShape((_TOKENS, Dimension.AUTOENCODER_LATENTS), _node_type)
    HOOK_POINT_SHAPES[_error] = HookPointShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL)

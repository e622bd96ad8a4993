"""Places: every tensor of the forward pass that can be read, ablated or differentiated.

A place is per sequence: the shapes below leave out the batch. `is_per_layer` tells whether there is one in
every layer. SEMANTICS calls these "places that can be read"; the wire calls them activation locations.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tdb_server.domain.node import Dimension, NodeType

_TOKENS = Dimension.SEQUENCE_TOKENS
_KEYS = Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_HEADS = Dimension.ATTN_HEADS
_CHANNELS = Dimension.RESIDUAL_STREAM_CHANNELS


class Place(Enum):
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


@dataclass(frozen=True, slots=True)
class PlaceShape:
    """The axes of a place, in the order in which clients index them."""

    dimensions: tuple[Dimension, ...]
    node_type: NodeType
    is_per_layer: bool = True


_LATENTS = (_TOKENS, Dimension.AUTOENCODER_LATENTS)

PLACE_SHAPES: dict[Place, PlaceShape] = {
    Place.RESID_POST_EMB: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL, False),
    Place.ATTN_LN_SCALE: PlaceShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER),
    Place.ATTN_Q: PlaceShape((_TOKENS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL),
    Place.ATTN_K: PlaceShape((_KEYS, _HEADS, Dimension.QK_CHANNELS), NodeType.QK_CHANNEL),
    Place.ATTN_V: PlaceShape((_KEYS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL),
    Place.ATTN_QK_LOGITS: PlaceShape((_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD),
    Place.ATTN_QK_PROBS: PlaceShape((_TOKENS, _KEYS, _HEADS), NodeType.ATTENTION_HEAD),
    Place.ATTN_V_OUT: PlaceShape((_TOKENS, _HEADS, Dimension.V_CHANNELS), NodeType.V_CHANNEL),
    Place.RESID_DELTA_ATTN: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.RESID_POST_ATTN: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.MLP_LN_SCALE: PlaceShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER),
    Place.MLP_PRE_ACT: PlaceShape((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON),
    Place.MLP_POST_ACT: PlaceShape((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON),
    Place.RESID_DELTA_MLP: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.RESID_POST_MLP: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.RESID_LN_F_SCALE: PlaceShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER, False),
    Place.LOGITS: PlaceShape((_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, False),
    Place.ONLINE_AUTOENCODER_LATENT: PlaceShape(_LATENTS, NodeType.AUTOENCODER_LATENT),
    Place.ONLINE_MLP_AUTOENCODER_LATENT: PlaceShape(_LATENTS, NodeType.MLP_AUTOENCODER_LATENT),
    Place.ONLINE_ATTENTION_AUTOENCODER_LATENT: PlaceShape(_LATENTS, NodeType.ATTENTION_AUTOENCODER_LATENT),
    Place.ONLINE_AUTOENCODER_ERROR: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.ONLINE_MLP_AUTOENCODER_ERROR: PlaceShape((_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL),
    Place.ONLINE_ATTENTION_AUTOENCODER_ERROR: PlaceShape(
        (_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL
    ),
}

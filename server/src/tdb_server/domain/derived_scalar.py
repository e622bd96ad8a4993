"""Derived scalars: the numbers that can be asked for by name, and the axes of each.

`DERIVED_SCALAR_SHAPES` says what a derived scalar's axes are and which node each entry belongs to;
`tdb_server.scalars.derived` says how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tdb_server.domain.node import Dimension, NodeType
from tdb_server.domain.place import PLACE_SHAPES, Place


class GroupId(Enum):
    """Groups of derived scalars that are comparable across node types."""

    WRITE_NORM = "write_norm"
    ACT_TIMES_GRAD = "act_times_grad"
    DIRECTION_WRITE = "direction_write"
    ACTIVATION = "activation"
    LOGITS = "logits"
    SINGLETON = "singleton"

    @property
    def has_bottom(self) -> bool:
        """Whether the smallest values are as interesting as the largest."""
        return self not in (GroupId.WRITE_NORM, GroupId.ACTIVATION, GroupId.LOGITS)


class DerivedScalar(Enum):
    """A named number per node."""

    LOGITS = "logits"
    RESID_POST_EMBEDDING = "resid_post_embedding"
    MLP_PRE_ACT = "mlp_pre_act"
    MLP_POST_ACT = "mlp_post_act"
    RESID_DELTA_MLP = "resid_delta_mlp"
    RESID_POST_MLP = "resid_post_mlp"
    ATTN_QUERY = "attn_query"
    ATTN_KEY = "attn_key"
    ATTN_VALUE = "attn_value"
    ATTN_QK_LOGITS = "attn_qk_logits"
    ATTN_QK_PROBS = "attn_qk_probs"
    ATTN_WEIGHTED_SUM_OF_VALUES = "attn_weighted_sum_of_values"
    RESID_DELTA_ATTN = "resid_delta_attn"
    RESID_POST_ATTN = "resid_post_attn"
    RESID_FINAL_LAYER_NORM_SCALE = "resid_final_layer_norm_scale"
    ATTN_INPUT_LAYER_NORM_SCALE = "attn_input_layer_norm_scale"
    MLP_INPUT_LAYER_NORM_SCALE = "mlp_input_layer_norm_scale"
    PREVIOUS_LAYER_RESID_POST_MLP = "previous_layer_resid_post_mlp"
    ALWAYS_ONE = "always_one"
    TOKEN_ATTRIBUTION = "token_attribution"
    VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION = "vocab_token_write_to_input_direction"
    RESID_POST_EMBEDDING_NORM = "resid_post_embedding_norm"
    RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD = "resid_post_embedding_proj_to_final_residual_grad"
    RESID_POST_MLP_NORM = "resid_post_mlp_norm"
    RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD = "resid_post_mlp_proj_to_final_residual_grad"
    RESID_POST_ATTN_NORM = "resid_post_attn_norm"
    RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD = "resid_post_attn_proj_to_final_residual_grad"
    MLP_LAYER_WRITE_NORM = "mlp_layer_write_norm"
    MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD = "mlp_layer_write_to_final_residual_grad"
    ATTN_LAYER_WRITE_NORM = "attn_layer_write_norm"
    ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD = "attn_layer_write_to_final_residual_grad"
    MLP_WRITE_NORM = "mlp_write_norm"
    MLP_ACT_TIMES_GRAD = "mlp_act_times_grad"
    MLP_WRITE_TO_FINAL_RESIDUAL_GRAD = "mlp_write_to_final_residual_grad"
    UNFLATTENED_ATTN_WRITE_NORM = "unflattened_attn_write_norm"
    UNFLATTENED_ATTN_ACT_TIMES_GRAD = "unflattened_attn_act_times_grad"
    UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD = "unflattened_attn_write_to_final_residual_grad"
    ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN = "attn_write_norm_per_sequence_token"
    ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN = "attn_act_times_grad_per_sequence_token"
    ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN = (
        "attn_write_to_final_residual_grad_per_sequence_token"
    )
    ATTN_WRITE_SUM_HEADS = "attn_write_sum_heads"
    ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS = "attn_write_to_latent_summed_over_heads"
    ONLINE_AUTOENCODER_LATENT = "online_autoencoder_latent"
    ONLINE_AUTOENCODER_ACT_TIMES_GRAD = "online_autoencoder_act_times_grad"
    ONLINE_AUTOENCODER_WRITE_NORM = "online_autoencoder_write_norm"
    ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = "online_autoencoder_write_to_final_residual_grad"
    ONLINE_AUTOENCODER_ERROR = "online_autoencoder_error"
    ONLINE_MLP_AUTOENCODER_LATENT = "online_mlp_autoencoder_latent"
    ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD = "online_mlp_autoencoder_act_times_grad"
    ONLINE_MLP_AUTOENCODER_WRITE_NORM = "online_mlp_autoencoder_write_norm"
    ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        "online_mlp_autoencoder_write_to_final_residual_grad"
    )
    ONLINE_MLP_AUTOENCODER_ERROR = "online_mlp_autoencoder_error"
    ONLINE_ATTENTION_AUTOENCODER_LATENT = "online_attention_autoencoder_latent"
    ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD = "online_attention_autoencoder_act_times_grad"
    ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM = "online_attention_autoencoder_write_norm"
    ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        "online_attention_autoencoder_write_to_final_residual_grad"
    )
    ONLINE_ATTENTION_AUTOENCODER_ERROR = "online_attention_autoencoder_error"


@dataclass(frozen=True, slots=True)
class DerivedScalarShape:
    """The axes of a derived scalar and the node that an entry belongs to.

    Attributes:
        dimensions: axes, in the order of a node's tensor indices.
        node_type: what an entry is a number of.
        is_per_layer: whether there is one per layer.
        place: the place it simply reads, if it does: then it has a backward pass too.
    """

    dimensions: tuple[Dimension, ...]
    node_type: NodeType
    is_per_layer: bool = True
    place: Place | None = None


def _read(place: Place) -> DerivedScalarShape:
    shape = PLACE_SHAPES[place]
    return DerivedScalarShape(shape.dimensions, shape.node_type, shape.is_per_layer, place)


_TOKENS, _KEYS = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_WHOLE_LAYER = DerivedScalarShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER)
_EMBEDDING = DerivedScalarShape((_TOKENS, Dimension.SINGLE), NodeType.LAYER, is_per_layer=False)
_NEURONS = DerivedScalarShape((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON)
_HEAD_PAIRS = DerivedScalarShape((_TOKENS, _KEYS, Dimension.ATTN_HEADS), NodeType.ATTENTION_HEAD)
_HEAD_TOKENS = DerivedScalarShape((_TOKENS, Dimension.ATTN_HEADS), NodeType.ATTENTION_HEAD)
_CHANNELS = Dimension.RESIDUAL_STREAM_CHANNELS


def _latents(node_type: NodeType) -> DerivedScalarShape:
    return DerivedScalarShape((_TOKENS, Dimension.AUTOENCODER_LATENTS), node_type)


_ANY, _MLP, _ATTENTION = (
    _latents(NodeType.AUTOENCODER_LATENT),
    _latents(NodeType.MLP_AUTOENCODER_LATENT),
    _latents(NodeType.ATTENTION_AUTOENCODER_LATENT),
)

DERIVED_SCALAR_SHAPES: dict[DerivedScalar, DerivedScalarShape] = {
    DerivedScalar.LOGITS: _read(Place.LOGITS),
    DerivedScalar.RESID_POST_EMBEDDING: _read(Place.RESID_POST_EMB),
    DerivedScalar.MLP_PRE_ACT: _read(Place.MLP_PRE_ACT),
    DerivedScalar.MLP_POST_ACT: _read(Place.MLP_POST_ACT),
    DerivedScalar.RESID_DELTA_MLP: _read(Place.RESID_DELTA_MLP),
    DerivedScalar.RESID_POST_MLP: _read(Place.RESID_POST_MLP),
    DerivedScalar.ATTN_QUERY: _read(Place.ATTN_Q),
    DerivedScalar.ATTN_KEY: _read(Place.ATTN_K),
    DerivedScalar.ATTN_VALUE: _read(Place.ATTN_V),
    DerivedScalar.ATTN_QK_LOGITS: _read(Place.ATTN_QK_LOGITS),
    DerivedScalar.ATTN_QK_PROBS: _read(Place.ATTN_QK_PROBS),
    DerivedScalar.ATTN_WEIGHTED_SUM_OF_VALUES: _read(Place.ATTN_V_OUT),
    DerivedScalar.RESID_DELTA_ATTN: _read(Place.RESID_DELTA_ATTN),
    DerivedScalar.RESID_POST_ATTN: _read(Place.RESID_POST_ATTN),
    DerivedScalar.RESID_FINAL_LAYER_NORM_SCALE: _read(Place.RESID_LN_F_SCALE),
    DerivedScalar.ATTN_INPUT_LAYER_NORM_SCALE: _read(Place.ATTN_LN_SCALE),
    DerivedScalar.MLP_INPUT_LAYER_NORM_SCALE: _read(Place.MLP_LN_SCALE),
    DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP: DerivedScalarShape(
        (_TOKENS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL
    ),
    DerivedScalar.ALWAYS_ONE: _EMBEDDING,
    DerivedScalar.TOKEN_ATTRIBUTION: _EMBEDDING,
    DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION: DerivedScalarShape(
        (_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, is_per_layer=False
    ),
    DerivedScalar.RESID_POST_EMBEDDING_NORM: _EMBEDDING,
    DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: _EMBEDDING,
    DerivedScalar.RESID_POST_MLP_NORM: _WHOLE_LAYER,
    DerivedScalar.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: _WHOLE_LAYER,
    DerivedScalar.RESID_POST_ATTN_NORM: _WHOLE_LAYER,
    DerivedScalar.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: _WHOLE_LAYER,
    DerivedScalar.MLP_LAYER_WRITE_NORM: _WHOLE_LAYER,
    DerivedScalar.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: _WHOLE_LAYER,
    DerivedScalar.ATTN_LAYER_WRITE_NORM: _WHOLE_LAYER,
    DerivedScalar.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: _WHOLE_LAYER,
    DerivedScalar.MLP_WRITE_NORM: _NEURONS,
    DerivedScalar.MLP_ACT_TIMES_GRAD: _NEURONS,
    DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: _NEURONS,
    DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM: _HEAD_PAIRS,
    DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD: _HEAD_PAIRS,
    DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: _HEAD_PAIRS,
    DerivedScalar.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN: _HEAD_TOKENS,
    DerivedScalar.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN: _HEAD_TOKENS,
    DerivedScalar.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: _HEAD_TOKENS,
    DerivedScalar.ATTN_WRITE_SUM_HEADS: DerivedScalarShape(
        (_TOKENS, _KEYS, _CHANNELS), NodeType.RESIDUAL_STREAM_CHANNEL
    ),
    DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: DerivedScalarShape(
        (_TOKENS, _KEYS), NodeType.AUTOENCODER_LATENT
    ),
    DerivedScalar.ONLINE_AUTOENCODER_LATENT: _read(Place.ONLINE_AUTOENCODER_LATENT),
    DerivedScalar.ONLINE_AUTOENCODER_ACT_TIMES_GRAD: _ANY,
    DerivedScalar.ONLINE_AUTOENCODER_WRITE_NORM: _ANY,
    DerivedScalar.ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD: _ANY,
    DerivedScalar.ONLINE_AUTOENCODER_ERROR: _read(Place.ONLINE_AUTOENCODER_ERROR),
    DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT: _read(Place.ONLINE_MLP_AUTOENCODER_LATENT),
    DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD: _MLP,
    DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_NORM: _MLP,
    DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD: _MLP,
    DerivedScalar.ONLINE_MLP_AUTOENCODER_ERROR: _read(Place.ONLINE_MLP_AUTOENCODER_ERROR),
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT: _read(Place.ONLINE_ATTENTION_AUTOENCODER_LATENT),
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD: _ATTENTION,
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM: _ATTENTION,
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD: _ATTENTION,
    DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ERROR: _read(Place.ONLINE_ATTENTION_AUTOENCODER_ERROR),
}

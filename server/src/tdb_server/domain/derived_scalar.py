"""Derived scalars: the numbers that can be asked for by name, each declared once.

A declaration says what a derived scalar's axes are, which node each entry belongs to, and what it measures of
which hook point. Everything else follows: what a run keeps for it, whether it needs an objective, whether it
has a backward pass, and which product of factors computes it (`tdb_server.engine.scalars`).

To add a derived scalar that measures something known, declare it here. To measure something new, add a
`Measure`, and say there how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tdb_server.domain.hook_point import DICTIONARY_HOOK_POINTS, HOOK_POINT_SHAPES, HookPoint
from tdb_server.domain.node import Dimension, NodeType, PassType


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
    ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT = "online_resid_post_attn_autoencoder_latent"
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ACT_TIMES_GRAD = "online_resid_post_attn_autoencoder_act_times_grad"
    ONLINE_RESID_POST_ATTN_AUTOENCODER_WRITE_NORM = "online_resid_post_attn_autoencoder_write_norm"
    ONLINE_RESID_POST_ATTN_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        "online_resid_post_attn_autoencoder_write_to_final_residual_grad"
    )
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ERROR = "online_resid_post_attn_autoencoder_error"
    ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT = "online_resid_post_mlp_autoencoder_latent"
    ONLINE_RESID_POST_MLP_AUTOENCODER_ACT_TIMES_GRAD = "online_resid_post_mlp_autoencoder_act_times_grad"
    ONLINE_RESID_POST_MLP_AUTOENCODER_WRITE_NORM = "online_resid_post_mlp_autoencoder_write_norm"
    ONLINE_RESID_POST_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        "online_resid_post_mlp_autoencoder_write_to_final_residual_grad"
    )
    ONLINE_RESID_POST_MLP_AUTOENCODER_ERROR = "online_resid_post_mlp_autoencoder_error"
    ONLINE_MLP_TRANSCODER_LATENT = "online_mlp_transcoder_latent"
    ONLINE_MLP_TRANSCODER_ACT_TIMES_GRAD = "online_mlp_transcoder_act_times_grad"
    ONLINE_MLP_TRANSCODER_WRITE_NORM = "online_mlp_transcoder_write_norm"
    ONLINE_MLP_TRANSCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = "online_mlp_transcoder_write_to_final_residual_grad"
    ONLINE_MLP_TRANSCODER_ERROR = "online_mlp_transcoder_error"
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


class Measure(Enum):
    """What is measured of a node's activation, or of a vector at a hook point."""

    ACTIVATION = "activation"  # the activation itself; with the backward pass, its gradient too
    ACT_TIMES_GRAD = "act_times_grad"  # activation x d objective / d activation
    WRITE_NORM = "write_norm"  # activation x norm of the unit write
    DIRECT_EFFECT = "direct_effect"  # activation x unit write . direction of interest
    VECTOR_NORM = "vector_norm"  # norm of the vector of each token
    VECTOR_TIMES_GRAD = "vector_times_grad"  # vector . d objective / d vector
    VECTOR_EFFECT = "vector_effect"  # vector . direction of interest
    SUMMED_WRITE = "summed_write"  # what all heads together move from token to token
    ONE = "one"
    VOCABULARY_READ = "vocabulary_read"  # what embeddings alone give the neurons or latents that are named
    WRITE_TO_LATENT = "write_to_latent"  # what all heads together move towards one latent


_OF_THE_OBJECTIVE = frozenset(
    {Measure.ACT_TIMES_GRAD, Measure.DIRECT_EFFECT, Measure.VECTOR_TIMES_GRAD, Measure.VECTOR_EFFECT}
)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a derived scalar is.

    Attributes:
        dimensions: axes, in the order of a node's tensor indices.
        node_type: what an entry is a number of.
        measure: what is measured.
        hook_point: of what. For latents, where they are read.
        is_per_layer: whether there is one per layer.
        is_previous_layer: whether it is read behind the layer before; before the first, of the embedding.
    """

    dimensions: tuple[Dimension, ...]
    node_type: NodeType
    measure: Measure
    hook_point: HookPoint | None = None
    is_per_layer: bool = True
    is_previous_layer: bool = False

    @property
    def has_backward_pass(self) -> bool:
        """Whether there is a gradient of the objective for each of its numbers."""
        return self.measure is Measure.ACTIVATION

    def needs_objective(self, pass_type: PassType) -> bool:
        """Whether it is made from a gradient of the objective."""
        return pass_type is PassType.BACKWARD or self.measure in _OF_THE_OBJECTIVE

    @property
    def reads(self) -> HookPoint | None:
        """The hook point that it simply reads, if it does."""
        return self.hook_point if self.has_backward_pass and not self.is_previous_layer else None


_TOKENS, _KEYS = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_CHANNELS = Dimension.RESIDUAL_STREAM_CHANNELS


def _read(hook_point: HookPoint) -> Declaration:
    shape = HOOK_POINT_SHAPES[hook_point]
    return Declaration(shape.dimensions, shape.node_type, Measure.ACTIVATION, hook_point, shape.is_per_layer)


def _of_neurons(measure: Measure) -> Declaration:
    return Declaration((_TOKENS, Dimension.MLP_ACTS), NodeType.MLP_NEURON, measure, HookPoint.MLP_POST_ACT)


def _of_pairs(measure: Measure) -> Declaration:
    axes = (_TOKENS, _KEYS, Dimension.ATTN_HEADS)
    return Declaration(axes, NodeType.ATTENTION_HEAD, measure, HookPoint.ATTN_QK_PROBS)


def _of_heads(measure: Measure) -> Declaration:
    """A head at a token, whatever it attends to."""
    return Declaration(
        (_TOKENS, Dimension.ATTN_HEADS), NodeType.ATTENTION_HEAD, measure, HookPoint.ATTN_V_OUT
    )


def _of_layers(measure: Measure, hook_point: HookPoint) -> Declaration:
    axes = (_TOKENS, Dimension.SINGLE)
    return Declaration(axes, NodeType.LAYER, measure, hook_point)


def _of_embeddings(measure: Measure) -> Declaration:
    axes = (_TOKENS, Dimension.SINGLE)
    return Declaration(axes, NodeType.LAYER, measure, HookPoint.RESID_POST_EMB, is_per_layer=False)


def _of_latents(measure: Measure, latents: HookPoint) -> Declaration:
    shape = HOOK_POINT_SHAPES[latents]
    return Declaration(shape.dimensions, shape.node_type, measure, latents)


DERIVED_SCALARS: dict[DerivedScalar, Declaration] = {
    DerivedScalar.LOGITS: _read(HookPoint.LOGITS),
    DerivedScalar.RESID_POST_EMBEDDING: _read(HookPoint.RESID_POST_EMB),
    DerivedScalar.MLP_PRE_ACT: _read(HookPoint.MLP_PRE_ACT),
    DerivedScalar.MLP_POST_ACT: _read(HookPoint.MLP_POST_ACT),
    DerivedScalar.RESID_DELTA_MLP: _read(HookPoint.RESID_DELTA_MLP),
    DerivedScalar.RESID_POST_MLP: _read(HookPoint.RESID_POST_MLP),
    DerivedScalar.ATTN_QUERY: _read(HookPoint.ATTN_Q),
    DerivedScalar.ATTN_KEY: _read(HookPoint.ATTN_K),
    DerivedScalar.ATTN_VALUE: _read(HookPoint.ATTN_V),
    DerivedScalar.ATTN_QK_LOGITS: _read(HookPoint.ATTN_QK_LOGITS),
    DerivedScalar.ATTN_QK_PROBS: _read(HookPoint.ATTN_QK_PROBS),
    DerivedScalar.ATTN_WEIGHTED_SUM_OF_VALUES: _read(HookPoint.ATTN_V_OUT),
    DerivedScalar.RESID_DELTA_ATTN: _read(HookPoint.RESID_DELTA_ATTN),
    DerivedScalar.RESID_POST_ATTN: _read(HookPoint.RESID_POST_ATTN),
    DerivedScalar.RESID_FINAL_LAYER_NORM_SCALE: _read(HookPoint.RESID_LN_F_SCALE),
    DerivedScalar.ATTN_INPUT_LAYER_NORM_SCALE: _read(HookPoint.ATTN_LN_SCALE),
    DerivedScalar.MLP_INPUT_LAYER_NORM_SCALE: _read(HookPoint.MLP_LN_SCALE),
    DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP: Declaration(
        (_TOKENS, _CHANNELS),
        NodeType.RESIDUAL_STREAM_CHANNEL,
        Measure.ACTIVATION,
        HookPoint.RESID_POST_MLP,
        is_previous_layer=True,
    ),
    DerivedScalar.ALWAYS_ONE: _of_embeddings(Measure.ONE),
    DerivedScalar.TOKEN_ATTRIBUTION: _of_embeddings(Measure.VECTOR_TIMES_GRAD),
    DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION: Declaration(
        (_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, Measure.VOCABULARY_READ, is_per_layer=False
    ),
    DerivedScalar.RESID_POST_EMBEDDING_NORM: _of_embeddings(Measure.VECTOR_NORM),
    DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: _of_embeddings(Measure.VECTOR_EFFECT),
    DerivedScalar.RESID_POST_MLP_NORM: _of_layers(Measure.VECTOR_NORM, HookPoint.RESID_POST_MLP),
    DerivedScalar.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: _of_layers(
        Measure.VECTOR_EFFECT, HookPoint.RESID_POST_MLP
    ),
    DerivedScalar.RESID_POST_ATTN_NORM: _of_layers(Measure.VECTOR_NORM, HookPoint.RESID_POST_ATTN),
    DerivedScalar.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: _of_layers(
        Measure.VECTOR_EFFECT, HookPoint.RESID_POST_ATTN
    ),
    DerivedScalar.MLP_LAYER_WRITE_NORM: _of_layers(Measure.VECTOR_NORM, HookPoint.RESID_DELTA_MLP),
    DerivedScalar.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: _of_layers(
        Measure.VECTOR_EFFECT, HookPoint.RESID_DELTA_MLP
    ),
    DerivedScalar.ATTN_LAYER_WRITE_NORM: _of_layers(Measure.VECTOR_NORM, HookPoint.RESID_DELTA_ATTN),
    DerivedScalar.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: _of_layers(
        Measure.VECTOR_EFFECT, HookPoint.RESID_DELTA_ATTN
    ),
    DerivedScalar.MLP_WRITE_NORM: _of_neurons(Measure.WRITE_NORM),
    DerivedScalar.MLP_ACT_TIMES_GRAD: _of_neurons(Measure.ACT_TIMES_GRAD),
    DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: _of_neurons(Measure.DIRECT_EFFECT),
    DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM: _of_pairs(Measure.WRITE_NORM),
    DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD: _of_pairs(Measure.ACT_TIMES_GRAD),
    DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: _of_pairs(Measure.DIRECT_EFFECT),
    DerivedScalar.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN: _of_heads(Measure.WRITE_NORM),
    DerivedScalar.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN: _of_heads(Measure.ACT_TIMES_GRAD),
    DerivedScalar.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: _of_heads(Measure.DIRECT_EFFECT),
    DerivedScalar.ATTN_WRITE_SUM_HEADS: Declaration(
        (_TOKENS, _KEYS, _CHANNELS),
        NodeType.RESIDUAL_STREAM_CHANNEL,
        Measure.SUMMED_WRITE,
        HookPoint.ATTN_QK_PROBS,
    ),
    DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: Declaration(
        (_TOKENS, _KEYS), NodeType.AUTOENCODER_LATENT, Measure.WRITE_TO_LATENT, HookPoint.ATTN_QK_PROBS
    ),
}
for _latents, _error in DICTIONARY_HOOK_POINTS.values():
    _prefix = _latents.name.removesuffix("_LATENT")
    DERIVED_SCALARS |= {
        DerivedScalar[_latents.name]: _read(_latents),
        DerivedScalar[f"{_prefix}_ACT_TIMES_GRAD"]: _of_latents(Measure.ACT_TIMES_GRAD, _latents),
        DerivedScalar[f"{_prefix}_WRITE_NORM"]: _of_latents(Measure.WRITE_NORM, _latents),
        DerivedScalar[f"{_prefix}_WRITE_TO_FINAL_RESIDUAL_GRAD"]: _of_latents(
            Measure.DIRECT_EFFECT, _latents
        ),
        DerivedScalar[_error.name]: _read(_error),
    }

"""Derived scalars: the numbers that can be asked for by name, each declared once.

A declaration says what a derived scalar's axes are, which node each entry belongs to, and what it measures of
which hook point. Everything else follows: what a run keeps for it, whether it needs an objective, whether it
has a backward pass, and which product of factors computes it (`tdb_server.engine.scalars`).

To add a derived scalar that measures something known, declare it here. To measure something new, add a
`Measure`, and say there how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Self

from tdb_server.domain.hook_point import WHOLE_HOOK_POINTS, HookPoint
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
_ADDS_UP = _OF_THE_OBJECTIVE | {Measure.WRITE_NORM, Measure.VECTOR_NORM, Measure.ONE}
_OF_VECTORS = frozenset({Measure.VECTOR_NORM, Measure.VECTOR_TIMES_GRAD, Measure.VECTOR_EFFECT, Measure.ONE})
"""One number for each vector, not one for each of its entries."""


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

    @property
    def adds_up(self) -> bool:
        """Whether its sum over tokens and components says something of all of them together."""
        return self.measure in _ADDS_UP

    def needs_objective(self, pass_type: PassType) -> bool:
        """Whether it is made from a gradient of the objective."""
        return pass_type is PassType.BACKWARD or self.measure in _OF_THE_OBJECTIVE

    @property
    def reads(self) -> HookPoint | None:
        """The hook point that it simply reads, if it does."""
        return self.hook_point if self.has_backward_pass and not self.is_previous_layer else None


_TOKENS, _KEYS = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_CHANNELS = Dimension.RESIDUAL_STREAM_CHANNELS
_EMBEDDING, _NEURON, _HEAD = HookPoint.RESID_POST_EMB, HookPoint.MLP_POST_ACT, HookPoint.ATTN_QK_PROBS
_LATENT, _MLP_LATENT = HookPoint.ONLINE_AUTOENCODER_LATENT, HookPoint.ONLINE_MLP_AUTOENCODER_LATENT
_ATTENTION_LATENT = HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT
_POST_ATTN_LATENT = HookPoint.ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT
_POST_MLP_LATENT = HookPoint.ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT
_TRANSCODER_LATENT = HookPoint.ONLINE_MLP_TRANSCODER_LATENT


def _of(hook_point: HookPoint, measure: Measure = Measure.ACTIVATION) -> Declaration:
    """A measure of what is at a hook point, which gives it its axes and nodes."""
    axes, node_type = hook_point.dimensions, hook_point.node_type
    if measure in _OF_VECTORS:
        axes, node_type = (_TOKENS, Dimension.SINGLE), NodeType.LAYER
    return Declaration(axes, node_type, measure, hook_point, hook_point.is_per_layer)


def _of_heads(measure: Measure) -> Declaration:
    """A head at a token, whatever it attends to."""
    axes = (_TOKENS, Dimension.ATTN_HEADS)
    return Declaration(axes, NodeType.ATTENTION_HEAD, measure, HookPoint.ATTN_V_OUT)


def _of_whole(node_type: NodeType, measure: Measure) -> Declaration:
    """A head or an MLP at a token, as the vector that it reads from the tokens or adds to the stream."""
    hook_point = WHOLE_HOOK_POINTS[node_type]
    axes = (_TOKENS, Dimension.ATTN_HEADS if node_type is NodeType.WHOLE_HEAD else Dimension.SINGLE)
    return Declaration(axes, node_type, measure, hook_point)


class DerivedScalar(Enum):
    """A named number per node. Its value is the name in lower case; `declared` says what it is."""

    _value_: str
    declared: Declaration

    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name.lower()

    def __new__(cls, value: str, declared: Declaration) -> Self:
        """A member of that value."""
        member = object.__new__(cls)
        member._value_ = value
        member.declared = declared
        return member

    LOGITS = auto(), _of(HookPoint.LOGITS)
    RESID_POST_EMBEDDING = auto(), _of(HookPoint.RESID_POST_EMB)
    MLP_PRE_ACT = auto(), _of(HookPoint.MLP_PRE_ACT)
    MLP_POST_ACT = auto(), _of(HookPoint.MLP_POST_ACT)
    RESID_DELTA_MLP = auto(), _of(HookPoint.RESID_DELTA_MLP)
    RESID_POST_MLP = auto(), _of(HookPoint.RESID_POST_MLP)
    ATTN_QUERY = auto(), _of(HookPoint.ATTN_Q)
    ATTN_KEY = auto(), _of(HookPoint.ATTN_K)
    ATTN_VALUE = auto(), _of(HookPoint.ATTN_V)
    ATTN_QK_LOGITS = auto(), _of(HookPoint.ATTN_QK_LOGITS)
    ATTN_QK_PROBS = auto(), _of(HookPoint.ATTN_QK_PROBS)
    ATTN_WEIGHTED_SUM_OF_VALUES = auto(), _of(HookPoint.ATTN_V_OUT)
    RESID_DELTA_ATTN = auto(), _of(HookPoint.RESID_DELTA_ATTN)
    RESID_POST_ATTN = auto(), _of(HookPoint.RESID_POST_ATTN)
    RESID_FINAL_LAYER_NORM_SCALE = auto(), _of(HookPoint.RESID_LN_F_SCALE)
    ATTN_INPUT_LAYER_NORM_SCALE = auto(), _of(HookPoint.ATTN_LN_SCALE)
    MLP_INPUT_LAYER_NORM_SCALE = auto(), _of(HookPoint.MLP_LN_SCALE)
    PREVIOUS_LAYER_RESID_POST_MLP = auto(), replace(_of(HookPoint.RESID_POST_MLP), is_previous_layer=True)
    ALWAYS_ONE = auto(), _of(_EMBEDDING, Measure.ONE)
    TOKEN_ATTRIBUTION = auto(), _of(_EMBEDDING, Measure.VECTOR_TIMES_GRAD)
    VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION = (
        auto(),
        Declaration(
            (_TOKENS, Dimension.VOCAB_SIZE), NodeType.VOCAB_TOKEN, Measure.VOCABULARY_READ, is_per_layer=False
        ),
    )
    RESID_POST_EMBEDDING_NORM = auto(), _of(_EMBEDDING, Measure.VECTOR_NORM)
    RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD = auto(), _of(_EMBEDDING, Measure.VECTOR_EFFECT)
    RESID_POST_MLP_NORM = auto(), _of(HookPoint.RESID_POST_MLP, Measure.VECTOR_NORM)
    RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD = auto(), _of(HookPoint.RESID_POST_MLP, Measure.VECTOR_EFFECT)
    RESID_POST_ATTN_NORM = auto(), _of(HookPoint.RESID_POST_ATTN, Measure.VECTOR_NORM)
    RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD = (
        auto(),
        _of(HookPoint.RESID_POST_ATTN, Measure.VECTOR_EFFECT),
    )
    MLP_LAYER_WRITE_NORM = auto(), _of(HookPoint.RESID_DELTA_MLP, Measure.VECTOR_NORM)
    MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(HookPoint.RESID_DELTA_MLP, Measure.VECTOR_EFFECT)
    ATTN_LAYER_WRITE_NORM = auto(), _of(HookPoint.RESID_DELTA_ATTN, Measure.VECTOR_NORM)
    ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(HookPoint.RESID_DELTA_ATTN, Measure.VECTOR_EFFECT)
    MLP_WRITE_NORM = auto(), _of(_NEURON, Measure.WRITE_NORM)
    MLP_ACT_TIMES_GRAD = auto(), _of(_NEURON, Measure.ACT_TIMES_GRAD)
    MLP_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(_NEURON, Measure.DIRECT_EFFECT)
    UNFLATTENED_ATTN_WRITE_NORM = auto(), _of(_HEAD, Measure.WRITE_NORM)
    UNFLATTENED_ATTN_ACT_TIMES_GRAD = auto(), _of(_HEAD, Measure.ACT_TIMES_GRAD)
    UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(_HEAD, Measure.DIRECT_EFFECT)
    ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN = auto(), _of_heads(Measure.WRITE_NORM)
    ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN = auto(), _of_heads(Measure.ACT_TIMES_GRAD)
    ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN = auto(), _of_heads(Measure.DIRECT_EFFECT)
    ATTN_WRITE_SUM_HEADS = (
        auto(),
        Declaration(
            (_TOKENS, _KEYS, _CHANNELS),
            NodeType.RESIDUAL_STREAM_CHANNEL,
            Measure.SUMMED_WRITE,
            HookPoint.ATTN_QK_PROBS,
        ),
    )
    ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS = (
        auto(),
        Declaration(
            (_TOKENS, _KEYS), NodeType.AUTOENCODER_LATENT, Measure.WRITE_TO_LATENT, HookPoint.ATTN_QK_PROBS
        ),
    )
    ONLINE_RESID_POST_ATTN_AUTOENCODER_LATENT = auto(), _of(_POST_ATTN_LATENT)
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ACT_TIMES_GRAD = auto(), _of(_POST_ATTN_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_RESID_POST_ATTN_AUTOENCODER_WRITE_NORM = auto(), _of(_POST_ATTN_LATENT, Measure.WRITE_NORM)
    ONLINE_RESID_POST_ATTN_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        auto(),
        _of(_POST_ATTN_LATENT, Measure.DIRECT_EFFECT),
    )
    ONLINE_RESID_POST_ATTN_AUTOENCODER_ERROR = auto(), _of(HookPoint.ONLINE_RESID_POST_ATTN_AUTOENCODER_ERROR)
    ONLINE_RESID_POST_MLP_AUTOENCODER_LATENT = auto(), _of(_POST_MLP_LATENT)
    ONLINE_RESID_POST_MLP_AUTOENCODER_ACT_TIMES_GRAD = auto(), _of(_POST_MLP_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_RESID_POST_MLP_AUTOENCODER_WRITE_NORM = auto(), _of(_POST_MLP_LATENT, Measure.WRITE_NORM)
    ONLINE_RESID_POST_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        auto(),
        _of(_POST_MLP_LATENT, Measure.DIRECT_EFFECT),
    )
    ONLINE_RESID_POST_MLP_AUTOENCODER_ERROR = auto(), _of(HookPoint.ONLINE_RESID_POST_MLP_AUTOENCODER_ERROR)
    ONLINE_MLP_TRANSCODER_LATENT = auto(), _of(_TRANSCODER_LATENT)
    ONLINE_MLP_TRANSCODER_ACT_TIMES_GRAD = auto(), _of(_TRANSCODER_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_MLP_TRANSCODER_WRITE_NORM = auto(), _of(_TRANSCODER_LATENT, Measure.WRITE_NORM)
    ONLINE_MLP_TRANSCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        auto(),
        _of(_TRANSCODER_LATENT, Measure.DIRECT_EFFECT),
    )
    ONLINE_MLP_TRANSCODER_ERROR = auto(), _of(HookPoint.ONLINE_MLP_TRANSCODER_ERROR)
    ONLINE_AUTOENCODER_LATENT = auto(), _of(HookPoint.ONLINE_AUTOENCODER_LATENT)
    ONLINE_AUTOENCODER_ACT_TIMES_GRAD = auto(), _of(_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_AUTOENCODER_WRITE_NORM = auto(), _of(_LATENT, Measure.WRITE_NORM)
    ONLINE_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(_LATENT, Measure.DIRECT_EFFECT)
    ONLINE_AUTOENCODER_ERROR = auto(), _of(HookPoint.ONLINE_AUTOENCODER_ERROR)
    ONLINE_MLP_AUTOENCODER_LATENT = auto(), _of(HookPoint.ONLINE_MLP_AUTOENCODER_LATENT)
    ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD = auto(), _of(_MLP_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_MLP_AUTOENCODER_WRITE_NORM = auto(), _of(_MLP_LATENT, Measure.WRITE_NORM)
    ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of(_MLP_LATENT, Measure.DIRECT_EFFECT)
    ONLINE_MLP_AUTOENCODER_ERROR = auto(), _of(HookPoint.ONLINE_MLP_AUTOENCODER_ERROR)
    ONLINE_ATTENTION_AUTOENCODER_LATENT = auto(), _of(HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT)
    ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD = auto(), _of(_ATTENTION_LATENT, Measure.ACT_TIMES_GRAD)
    ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM = auto(), _of(_ATTENTION_LATENT, Measure.WRITE_NORM)
    ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD = (
        auto(),
        _of(_ATTENTION_LATENT, Measure.DIRECT_EFFECT),
    )
    ONLINE_ATTENTION_AUTOENCODER_ERROR = auto(), _of(HookPoint.ONLINE_ATTENTION_AUTOENCODER_ERROR)
    WHOLE_HEAD_ACT_TIMES_GRAD = auto(), _of_whole(NodeType.WHOLE_HEAD, Measure.VECTOR_TIMES_GRAD)
    WHOLE_HEAD_WRITE_NORM = auto(), _of_whole(NodeType.WHOLE_HEAD, Measure.VECTOR_NORM)
    WHOLE_HEAD_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of_whole(NodeType.WHOLE_HEAD, Measure.VECTOR_EFFECT)
    WHOLE_HEAD_ONE = auto(), _of_whole(NodeType.WHOLE_HEAD, Measure.ONE)
    WHOLE_MLP_ACT_TIMES_GRAD = auto(), _of_whole(NodeType.WHOLE_MLP, Measure.VECTOR_TIMES_GRAD)
    WHOLE_MLP_WRITE_NORM = auto(), _of_whole(NodeType.WHOLE_MLP, Measure.VECTOR_NORM)
    WHOLE_MLP_WRITE_TO_FINAL_RESIDUAL_GRAD = auto(), _of_whole(NodeType.WHOLE_MLP, Measure.VECTOR_EFFECT)
    WHOLE_MLP_ONE = auto(), _of_whole(NodeType.WHOLE_MLP, Measure.ONE)

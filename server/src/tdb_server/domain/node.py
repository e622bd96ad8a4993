"""Nodes: one use of a component in one forward pass, and the names that point at them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class Dimension(Enum):
    """What one axis of a tensor runs over."""

    SEQUENCE_TOKENS = "sequence_tokens"
    ATTENDED_TO_SEQUENCE_TOKENS = "attended_to_sequence_tokens"
    ATTN_HEADS = "attn_heads"
    MLP_ACTS = "mlp_acts"
    AUTOENCODER_LATENTS = "autoencoder_latents"
    RESIDUAL_STREAM_CHANNELS = "residual_stream_channels"
    QK_CHANNELS = "qk_channels"
    V_CHANNELS = "v_channels"
    VOCAB_SIZE = "vocab_size"
    SINGLE = "single"
    LAYERS = "layers"


class PassType(Enum):
    """Whether a number belongs to the forward pass or is a gradient of the objective."""

    FORWARD = "forward"
    BACKWARD = "backward"


class NodeType(Enum):
    """What kind of component a node is a use of."""

    ATTENTION_HEAD = "attention_head"
    QK_CHANNEL = "qk_channel"
    V_CHANNEL = "v_channel"
    MLP_NEURON = "mlp_neuron"
    AUTOENCODER_LATENT = "autoencoder_latent"
    MLP_AUTOENCODER_LATENT = "mlp_autoencoder_latent"
    ATTENTION_AUTOENCODER_LATENT = "attention_autoencoder_latent"
    RESID_POST_ATTN_AUTOENCODER_LATENT = "resid_post_attn_autoencoder_latent"
    RESID_POST_MLP_AUTOENCODER_LATENT = "resid_post_mlp_autoencoder_latent"
    MLP_TRANSCODER_LATENT = "mlp_transcoder_latent"
    RESIDUAL_STREAM_CHANNEL = "residual_stream_channel"
    LAYER = "layer"
    VOCAB_TOKEN = "vocab_token"
    WHOLE_HEAD = "whole_head"
    WHOLE_MLP = "whole_mlp"

    @property
    def is_latent(self) -> bool:
        """Whether nodes of this type are latents of a dictionary."""
        return self in LATENT_NODE_TYPES


LATENT_NODE_TYPES = frozenset(one for one in NodeType if one.value.endswith("_latent"))
WRITERS = LATENT_NODE_TYPES | {
    NodeType.LAYER,
    NodeType.MLP_NEURON,
    NodeType.ATTENTION_HEAD,
    NodeType.WHOLE_HEAD,
    NodeType.WHOLE_MLP,
}
"""Types of nodes that have a write vector; of layers the embedding has one."""


@dataclass(frozen=True, slots=True)
class NodeIndex:
    """Where a node is.

    Attributes:
        node_type: the kind of component.
        layer_index: None for places without layers (embedding, logits).
        tensor_indices: neuron or latent `(token, index)`, head `(query, key, head)`,
            embedding `(token, 0)`, logit `(token, vocabulary index)`.
        pass_type: forward, or backward when the number is a gradient.
    """

    node_type: NodeType
    layer_index: int | None
    tensor_indices: tuple[int, ...]
    pass_type: PassType = PassType.FORWARD


class Nodes(tuple[NodeIndex, ...]):
    """The nodes of a result: a tuple whose hash is worked out once.

    Most results of a call are about the same hundreds of nodes, and much is kept by them.
    """

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash

"""How long the axes of hook points and derived scalars are in the model that is loaded."""

from __future__ import annotations

import math

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import DICTIONARY_HOOK_POINTS, LATENT_TYPES, NODE_HOOK_POINTS, HookPoint
from tdb_server.domain.model_info import AutoencoderInfo, ModelInfo
from tdb_server.domain.node import Dimension, NodeType

TOKEN_DIMENSIONS = frozenset({Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS})

LATENT_HOOK_POINTS = frozenset(latents for latents, _ in DICTIONARY_HOOK_POINTS.values())
_PER_GROUP = frozenset({HookPoint.ATTN_K, HookPoint.ATTN_V})
"""Read per key/value head, which query heads may share."""


def is_of_autoencoder(hook_point: HookPoint) -> bool:
    """Whether the hook point exists only with a dictionary."""
    return hook_point in LATENT_TYPES


def hook_point_of_scalar(scalar: DerivedScalar) -> HookPoint | None:
    """The hook point that a derived scalar reads or, for numbers about latents, the latents themselves."""
    shape = scalar.declared
    if shape.reads is not None:
        return shape.reads
    return NODE_HOOK_POINTS[shape.node_type] if Dimension.AUTOENCODER_LATENTS in shape.dimensions else None


def autoencoders_of_hook_point(hook_point: HookPoint, info: ModelInfo) -> tuple[AutoencoderInfo, ...]:
    """The loaded dictionaries that a hook point may mean: none, one, or several where it says none."""
    node_type = LATENT_TYPES.get(hook_point)
    if node_type is NodeType.AUTOENCODER_LATENT:
        return info.autoencoders
    found = None if node_type is None else info.autoencoder(node_type)
    return () if found is None else (found,)


def specific_node_type(node_type: NodeType, info: ModelInfo) -> NodeType:
    """The type of node with "whichever dictionary is loaded" spelled out, where exactly one is."""
    if node_type is not NodeType.AUTOENCODER_LATENT or len(info.autoencoders) != 1:
        return node_type
    return info.autoencoders[0].site.node_type


def specific_hook_point(hook_point: HookPoint, info: ModelInfo) -> HookPoint:
    """The hook point with "whichever dictionary is loaded" spelled out, where exactly one is."""
    node_type = LATENT_TYPES.get(hook_point)
    if node_type is None:
        return hook_point
    which = DICTIONARY_HOOK_POINTS[node_type].index(hook_point)
    return DICTIONARY_HOOK_POINTS[specific_node_type(node_type, info)][which]


def hook_point_axes(hook_point: HookPoint, info: ModelInfo, n_tokens: int) -> tuple[int, ...]:
    """Lengths of a hook point's axes; its autoencoder must be loaded."""
    return tuple(_length(one, hook_point, info, n_tokens) for one in hook_point.dimensions)


def scalar_axes(scalar: DerivedScalar, info: ModelInfo, n_tokens: int) -> tuple[int, ...]:
    """Lengths of a derived scalar's axes; its autoencoder must be loaded."""
    hook_point = hook_point_of_scalar(scalar)
    return tuple(_length(one, hook_point, info, n_tokens) for one in scalar.declared.dimensions)


def n_cells(scalar: DerivedScalar, info: ModelInfo, n_tokens: int) -> int:
    """Numbers of a derived scalar in all layers; its autoencoder must be loaded."""
    n_layers = info.n_layers if scalar.declared.is_per_layer else 1
    return n_layers * math.prod(scalar_axes(scalar, info, n_tokens))


def _length(dimension: Dimension, hook_point: HookPoint | None, info: ModelInfo, n_tokens: int) -> int:
    match dimension:
        case Dimension.SEQUENCE_TOKENS | Dimension.ATTENDED_TO_SEQUENCE_TOKENS:
            return n_tokens
        case Dimension.ATTN_HEADS:
            return info.n_key_value_heads if hook_point in _PER_GROUP else info.n_heads
        case Dimension.MLP_ACTS:
            return info.n_neurons
        case Dimension.QK_CHANNELS | Dimension.V_CHANNELS:
            return info.d_head
        case Dimension.VOCAB_SIZE:
            return info.vocabulary_size
        case Dimension.SINGLE:
            return 1
        case Dimension.LAYERS:
            return info.n_layers
        case Dimension.AUTOENCODER_LATENTS | Dimension.RESIDUAL_STREAM_CHANNELS:
            if hook_point is None or not is_of_autoencoder(hook_point):
                return info.d_model
            autoencoder = autoencoders_of_hook_point(hook_point, info)[0]
            if dimension is Dimension.AUTOENCODER_LATENTS:
                return autoencoder.n_latents
            return info.site_width(autoencoder.site)

"""How long the axes of places and derived scalars are in the model that is loaded."""

from __future__ import annotations

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.model_info import AutoencoderInfo, ModelInfo, Site
from tdb_server.domain.node import Dimension, NodeType
from tdb_server.domain.place import PLACE_SHAPES, Place

TOKEN_DIMENSIONS = frozenset({Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS})

NODE_PLACES = {
    NodeType.ATTENTION_HEAD: Place.ATTN_QK_PROBS,
    NodeType.MLP_NEURON: Place.MLP_POST_ACT,
    NodeType.AUTOENCODER_LATENT: Place.ONLINE_AUTOENCODER_LATENT,
    NodeType.MLP_AUTOENCODER_LATENT: Place.ONLINE_MLP_AUTOENCODER_LATENT,
    NodeType.ATTENTION_AUTOENCODER_LATENT: Place.ONLINE_ATTENTION_AUTOENCODER_LATENT,
}
"""The nodes that can be ablated or traced, and the place whose cells they are."""

LATENT_PLACES = frozenset(
    {
        Place.ONLINE_AUTOENCODER_LATENT,
        Place.ONLINE_MLP_AUTOENCODER_LATENT,
        Place.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    }
)
_ANY_AUTOENCODER = frozenset({Place.ONLINE_AUTOENCODER_LATENT, Place.ONLINE_AUTOENCODER_ERROR})
_MLP_AUTOENCODER = frozenset({Place.ONLINE_MLP_AUTOENCODER_LATENT, Place.ONLINE_MLP_AUTOENCODER_ERROR})
_ATTENTION_AUTOENCODER = frozenset(
    {Place.ONLINE_ATTENTION_AUTOENCODER_LATENT, Place.ONLINE_ATTENTION_AUTOENCODER_ERROR}
)
_PLACES_PER_GROUP = frozenset({Place.ATTN_K, Place.ATTN_V})
"""Read per key/value head, which query heads may share."""


def is_autoencoder_place(place: Place) -> bool:
    """Whether the place exists only with an autoencoder."""
    return place in _ANY_AUTOENCODER | _MLP_AUTOENCODER | _ATTENTION_AUTOENCODER


def place_of_scalar(scalar: DerivedScalar) -> Place | None:
    """The place that a derived scalar reads or, for numbers about latents, the latents themselves."""
    shape = DERIVED_SCALAR_SHAPES[scalar]
    if shape.place is not None:
        return shape.place
    return NODE_PLACES[shape.node_type] if Dimension.AUTOENCODER_LATENTS in shape.dimensions else None


def autoencoders_of_place(place: Place, info: ModelInfo) -> tuple[AutoencoderInfo, ...]:
    """The loaded autoencoders that a place may mean: none, one, or two where the place does not say which."""
    if place in _ANY_AUTOENCODER:
        return info.autoencoders
    found = info.autoencoder(is_mlp=place in _MLP_AUTOENCODER)
    return () if found is None else (found,)


def specific_place(place: Place, info: ModelInfo) -> Place:
    """The place with "whichever autoencoder is loaded" spelled out, where exactly one is."""
    loaded = autoencoders_of_place(place, info) if place in _ANY_AUTOENCODER else ()
    if len(loaded) != 1:
        return place
    if place is Place.ONLINE_AUTOENCODER_LATENT:
        return loaded[0].site.latent_place
    is_mlp = loaded[0].site.is_mlp
    return Place.ONLINE_MLP_AUTOENCODER_ERROR if is_mlp else Place.ONLINE_ATTENTION_AUTOENCODER_ERROR


def place_axes(place: Place, info: ModelInfo, n_tokens: int) -> tuple[int, ...]:
    """Lengths of a place's axes; its autoencoder must be loaded."""
    return tuple(_length(one, place, info, n_tokens) for one in PLACE_SHAPES[place].dimensions)


def scalar_axes(scalar: DerivedScalar, info: ModelInfo, n_tokens: int) -> tuple[int, ...]:
    """Lengths of a derived scalar's axes; its autoencoder must be loaded."""
    place = place_of_scalar(scalar)
    return tuple(_length(one, place, info, n_tokens) for one in DERIVED_SCALAR_SHAPES[scalar].dimensions)


def _length(dimension: Dimension, place: Place | None, info: ModelInfo, n_tokens: int) -> int:
    match dimension:
        case Dimension.SEQUENCE_TOKENS | Dimension.ATTENDED_TO_SEQUENCE_TOKENS:
            return n_tokens
        case Dimension.ATTN_HEADS:
            return info.n_key_value_heads if place in _PLACES_PER_GROUP else info.n_heads
        case Dimension.MLP_ACTS:
            return info.n_neurons
        case Dimension.QK_CHANNELS | Dimension.V_CHANNELS:
            return info.d_head
        case Dimension.VOCAB_SIZE:
            return info.vocabulary_size
        case Dimension.SINGLE:
            return 1
        case Dimension.AUTOENCODER_LATENTS | Dimension.RESIDUAL_STREAM_CHANNELS:
            if place is None or not is_autoencoder_place(place):
                return info.d_model
            autoencoder = autoencoders_of_place(place, info)[0]
            if dimension is Dimension.AUTOENCODER_LATENTS:
                return autoencoder.n_latents
            return info.n_neurons if autoencoder.site is Site.MLP_POST_ACT else info.d_model

"""What a format's module finds in a folder: one layer's dictionary, as the file has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F

from tdb_server.domain.model_info import LatentNotes, Site
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.decoder import Norm


@dataclass(frozen=True)
class Place:
    """Where a dictionary reads and writes.

    Attributes:
        site: what is read and written.
        layer_index: of the model.
        has_gain: of a transcoder, whether its inputs have the gain and the bias of the MLP's norm.
        is_before_post_norm: whether it was trained on what a block gives before a norm of what is added.
        is_normalized_hook: whether it reads TransformerLens's `hook_normalized` of a model as it was trained.
    """

    site: Site
    layer_index: int
    has_gain: bool = False
    is_before_post_norm: bool = False
    is_normalized_hook: bool = False


@dataclass(frozen=True)
class StoredLayer:
    """One layer.

    Attributes:
        place: where it reads and writes.
        path: the file of its weights, for people.
        weights: its weights, in float32.
        is_centred: whether inputs are less their mean over channels, as in a model run with centred writing
            weights.
        notes: labels of its latents and a link to pages about them; None where there are none.
        content: digest of the tensors and settings of its folder, as they were read.
    """

    place: Place
    path: Path
    weights: AutoencoderLayer
    is_centred: bool = False
    notes: LatentNotes | None = None
    content: bytes = b""


def without_mean(weights: AutoencoderLayer) -> AutoencoderLayer:
    """The same for inputs that still have their mean over channels."""
    encoder = weights.encoder_weight
    mean = encoder.mean(dim=1, keepdim=True)
    latent_bias = weights.latent_bias - mean[:, 0] * weights.pre_bias.sum()  # whose mean was never taken away
    return replace(weights, encoder_weight=encoder - mean, latent_bias=latent_bias)


def without_gain(weights: AutoencoderLayer, norm: Norm) -> AutoencoderLayer:
    """The same transcoder for inputs before the norm's gain and bias are applied."""
    own_gain = norm.gain if norm.weights is None else norm.weights.gain  # in float32 where it is 1 + w
    gain, encoder, skip = own_gain.to(weights.encoder_weight), weights.encoder_weight, weights.skip_weight
    shift = -weights.pre_bias if norm.bias is None else norm.bias.to(encoder) - weights.pre_bias
    output_bias = weights.output_bias
    if skip is not None:
        if norm.bias is not None and output_bias is not None:
            output_bias = output_bias + F.linear(norm.bias.to(skip), skip)
        skip = skip * gain
    return replace(
        weights,
        pre_bias=weights.pre_bias.new_zeros(len(weights.pre_bias)),
        encoder_weight=encoder * gain,
        latent_bias=weights.latent_bias + encoder @ shift,
        output_bias=output_bias,
        skip_weight=skip,
    )


def scaled(weights: AutoencoderLayer, factor: float) -> AutoencoderLayer:
    """The same for inputs that are not multiplied with a factor, and outputs that are not divided by it."""
    output_bias = weights.output_bias
    return replace(
        weights,
        pre_bias=weights.pre_bias / factor,
        encoder_weight=weights.encoder_weight * factor,
        directions=weights.directions / factor,
        output_bias=None if output_bias is None else output_bias / factor,
    )


def with_unit_directions(weights: AutoencoderLayer) -> AutoencoderLayer:
    """The same with every latent multiplied with the length of its direction; thresholds are for these.

    Raises:
        ValueError: a direction has no length.
    """
    norms = weights.directions.norm(dim=1)
    if bool((norms == 0).any()):
        raise ValueError(f"the direction of latent {int(norms.argmin())} is 0, and is divided by its length")
    return replace(
        weights,
        encoder_weight=weights.encoder_weight * norms[:, None],
        latent_bias=weights.latent_bias * norms,
        directions=weights.directions / norms[:, None],
    )

"""What folders of dictionaries hold, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder_loading import Format, find_layers, layers_by_site, refuse_other_models
from tdb_server.model.config import DecoderConfig
from tdb_server.model.dictionaries.stored import StoredLayer
from tdb_server.model.families import decoder_config_from_hugging_face
from tdb_server.model.model_files import read_config
from tdb_server.model.progress import Progress
from tdb_server.model.sources import resolve_model


def report_lines(folders: Sequence[Path], model: str | None, progress: Progress) -> list[str]:
    """A line for each layer of each folder, and what does not fit the model.

    Args:
        folders: of dictionaries.
        model: as for `resolve_model`, whose configuration alone is read; None for no model.
        progress: told how far a download or a conversion is.

    Raises:
        ModelError: a file is missing or damaged, or does not fit the model.
    """
    layers = [found for folder in folders for found in find_layers(folder)]
    lines = [_line(*one) for one in layers]
    try:
        layers_by_site([layer for _, layer in layers])
    except AutoencoderBroken as error:
        lines.append(f"not all of them can be loaded at once: {error.message}")
    if model is None:
        return lines
    folder = resolve_model(model, progress)
    config = decoder_config_from_hugging_face(read_config(folder.path))
    for _, layer in layers:
        refuse_other_models(layer, config)
    return [*lines, f"each fits {folder.name}: {_shape(config)}"]


def _line(stored_as: Format, layer: StoredLayer) -> str:
    weights, place = layer.weights, layer.place
    read = place.site.hook_point.value
    if place.site is Site.MLP_TRANSCODER:
        read = f"what the MLP reads, {'with' if place.has_gain else 'before'} the gain of its norm"
    notes = [f"{len(layer.notes.labels)} labels", layer.notes.link] if layer.notes else []
    facts = [
        f"{layer.path}: {stored_as.name}",
        f"{place.site.value} of layer {place.layer_index}",
        f"reads {read} ({weights.encoder_weight.shape[-1]} channels)",
        f"writes {place.site.hook_point.value}",
        f"{len(weights.latent_bias)} latents, {weights.activation}",
        *(["inputs layer normed"] if weights.norms_inputs else []),
        *(["inputs centred"] if layer.is_centred else []),
        *(["with a skip"] if weights.skip_weight is not None else []),
        *notes,
    ]
    return "; ".join(one for one in facts if one)


def _shape(config: DecoderConfig) -> str:
    return f"{config.family}, {config.n_layers} layers, {config.d_model} channels, {config.n_neurons} neurons"

"""Dictionaries from their folders, whoever wrote them; `dictionaries/` has a module for each format.

Formats are told apart by their own files. Several folders of one site make one `Autoencoder`, as long as
their layers differ. A folder without files of any format stands for the folders in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.config import DecoderConfig
from tdb_server.model.decoder import Decoder
from tdb_server.model.dictionaries.circuit_tracer import YAML_CONFIG, load_circuit_tracer
from tdb_server.model.dictionaries.dictionary_learning import AE, load_dictionary_learning
from tdb_server.model.dictionaries.gemma_scope import PARAMS, load_gemma_scope
from tdb_server.model.dictionaries.gemma_scope_2 import PARAMS_2, load_gemma_scope_2
from tdb_server.model.dictionaries.notes import add_notes, check_labels
from tdb_server.model.dictionaries.own import CONFIG, load_own
from tdb_server.model.dictionaries.places import SITE
from tdb_server.model.dictionaries.saelens import SAELENS_CONFIG, load_saelens
from tdb_server.model.dictionaries.sparsify import SPARSIFY_WEIGHTS, load_sparsify
from tdb_server.model.dictionaries.stored import StoredLayer, without_gain, without_mean
from tdb_server.model.json_file import read_json_object
from tdb_server.model.regular_file import is_there

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True)
class Format:
    """A way in which dictionaries are stored.

    Attributes:
        name: for people.
        marker: the file by which it is known.
        load: reads a folder, and updates a digest with the tensors and settings in it.
    """

    name: str
    marker: str
    load: Callable[[Path, _Hash], list[StoredLayer]]


FORMATS = (
    Format("circuit-tracer", YAML_CONFIG, load_circuit_tracer),
    Format("Gemma Scope", PARAMS, load_gemma_scope),
    Format("Gemma Scope 2", PARAMS_2, load_gemma_scope_2),
    Format("dictionary_learning", AE, load_dictionary_learning),
    Format("sparsify", SPARSIFY_WEIGHTS, load_sparsify),
    Format("SAELens", SAELENS_CONFIG, load_saelens),
    Format("ours or the reference's", CONFIG, load_own),
)
"""All of them. `cfg.json` and `config.json` also accompany files of those above them."""
_CONFIGS = (SAELENS_CONFIG, CONFIG)


def format_of(folder: Path) -> Format | None:
    """The format of a folder; None where there is no file of any.

    Raises:
        AutoencoderBroken: there are files of two.
    """
    found = [one for one in FORMATS if is_there(folder / one.marker)]
    certain = [one for one in found if one.marker not in _CONFIGS]
    if len(certain) > 1:
        markers = " and ".join(one.marker for one in certain)
        raise AutoencoderBroken(f"{folder}: {markers}: which of them is meant? Remove one")
    return next(iter(certain or found), None)


def find_layers(folder: Path) -> list[tuple[Format, StoredLayer]]:
    """All that is stored in a folder, or where it has no files of its own, in the folders in it.

    Raises:
        AutoencoderBroken: a file is missing or damaged, or there is nothing.
    """
    found = format_of(folder)
    if found is not None:
        if (
            found.load in (load_saelens, load_sparsify)
            and is_there(folder / CONFIG)
            and SITE in read_json_object(folder / CONFIG)
        ):
            raise AutoencoderBroken(
                f"{folder}: {CONFIG} with a site beside {SAELENS_CONFIG}; remove one, or say it in "
                f"{SAELENS_CONFIG}"
            )
        digest = hashlib.sha256(found.name.encode())
        try:
            layers = add_notes(folder, found.load(folder, digest))
        except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
            # Files from strangers: what a format does not foresee is a damaged file, too.
            raise AutoencoderBroken(f"{folder}: cannot be read as {found.name}'s: {error}") from error
        return [(found, replace(layer, content=digest.digest())) for layer in layers]
    if not folder.is_dir():
        what = "a file; name the folder that it is in" if folder.exists() else "no such folder"
        raise AutoencoderBroken(f"{folder}: {what}")
    inner = [one for one in sorted(folder.iterdir()) if one.is_dir()]
    inner_layers = [layer for one in inner if format_of(one) is not None for layer in find_layers(one)]
    if not inner_layers:
        markers = ", ".join(one.marker for one in FORMATS)
        raise AutoencoderBroken(f"{folder}: no dictionary here: none of {markers}")
    return inner_layers


def read_dictionaries(folders: Sequence[Path], config: DecoderConfig) -> dict[Site, list[StoredLayer]]:
    """The dictionaries of some folders as they are stored, those of each site by layer.

    Nothing is needed of the model but its configuration: who names a wrong folder need not wait for weights.

    Args:
        folders: in any order.
        config: of the model they were trained on.

    Raises:
        AutoencoderBroken: a folder or file is missing or damaged, does not fit the model, or there are two
            for one site and layer, or for two sites of one node type.
    """
    found = [layer for folder in folders for _, layer in find_layers(folder)]
    for layer in found:
        refuse_other_models(layer, config)
    return layers_by_site(found)


def fit_dictionaries(by_site: Mapping[Site, Sequence[StoredLayer]], decoder: Decoder) -> list[Autoencoder]:
    """What `read_dictionaries` gave, on the decoder's device and in its type, write norms computed.

    Returns:
        At most one for each node type.
    """
    autoencoders = [_autoencoder(site, layers, decoder) for site, layers in by_site.items()]
    for autoencoder in autoencoders:
        autoencoder.compute_write_norms(decoder)
        autoencoder.count_active(decoder)
    return autoencoders


def layers_by_site(layers: Sequence[StoredLayer]) -> dict[Site, list[StoredLayer]]:
    """What is loaded together, those of each site by layer.

    Raises:
        AutoencoderBroken: it cannot be: two sites have one node type, there are two for one site and layer,
            those of a site are not alike, or all labels are too many.
    """
    check_labels(layers)
    by_site: dict[Site, list[StoredLayer]] = {}
    for layer in layers:
        by_site.setdefault(layer.place.site, []).append(layer)
    by_node_type: dict[object, Site] = {}
    for site in by_site:
        other = by_node_type.setdefault(site.node_type, site)
        if other is not site:
            paths = " and ".join(f"{by_site[one][0].path} ({one.value})" for one in (other, site))
            kind = "the MLP" if site.is_mlp else site.node_type.value
            raise AutoencoderBroken(f"two dictionaries for {kind}: {paths}; load one of them")
    for site_layers in by_site.values():
        first = site_layers[0]
        site_layers.sort(key=lambda one: one.place.layer_index)
        before = None
        for layer in site_layers:
            layer_index = layer.place.layer_index
            if layer_index == before:
                raise AutoencoderBroken(
                    f"{layer.path}: layer {layer_index} of {layer.place.site.value} is given twice"
                )
            before = layer_index
            if _kind(layer) != _kind(first):
                raise AutoencoderBroken(
                    f"{layer.path}: {_kind(layer)}, unlike {first.path} with {_kind(first)}; "
                    "layers of a site must be alike"
                )
    return by_site


def _autoencoder(site: Site, layers: Sequence[StoredLayer], decoder: Decoder) -> Autoencoder:
    fitted = {
        layer.place.layer_index: _fitted(layer, decoder).moved(decoder.device, decoder.dtype)
        for layer in layers
    }
    return Autoencoder(site, fitted, notes=tuple(layer.notes for layer in layers if layer.notes))


def _kind(layer: StoredLayer) -> str:
    weights = layer.weights
    normed = ", inputs layer normed" if weights.norms_inputs else ""
    return f"{len(weights.latent_bias)} latents, {weights.activation}{normed}"


def _fitted(layer: StoredLayer, decoder: Decoder) -> AutoencoderLayer:
    """The weights for what this model's hook points give."""
    weights = layer.weights
    if (
        layer.is_centred and decoder.config.norm == "layer_norm"
    ):  # others are never centred, whatever is asked
        weights = without_mean(weights)
    # TransformerLens's layer norm has its gain and bias before this hook, its RMS norm behind it.
    is_behind_gain = layer.place.is_normalized_hook and decoder.config.norm == "layer_norm"
    if layer.place.has_gain or is_behind_gain:
        norm = decoder.blocks[layer.place.layer_index].mlp.norm
        weights = without_gain(weights, norm)
    return weights


def site_width(site: Site, config: DecoderConfig) -> int:
    """Channels of what is read and written at a site."""
    match site:
        case Site.MLP_POST_ACT:
            return config.n_neurons
        case Site.ATTN_V_OUT:
            return config.n_heads * config.d_head
        case _:
            return config.d_model


def refuse_other_models(layer: StoredLayer, config: DecoderConfig) -> None:
    """Refuses weights that do not fit the model or each other, and numbers that are not finite.

    Raises:
        AutoencoderBroken: naming the tensor.
    """
    weights, place = layer.weights, layer.place
    if place.layer_index >= config.n_layers:
        raise AutoencoderBroken(
            f"{layer.path}: for layer {place.layer_index}; the model has layers 0 to {config.n_layers - 1}"
        )
    if place.is_before_post_norm and config.post_norms:
        raise AutoencoderBroken(
            f"{layer.path}: trained on what a block gives before its post-norm; in a {config.family} model "
            f"that is not {place.site.value}, which is behind it"
        )
    if place.site is Site.RESID_POST_ATTN and config.parallel_blocks:
        raise AutoencoderBroken(
            f"{layer.path}: there is no {place.site.value} in a {config.family} model, whose attention "
            "and MLP read the same stream"
        )
    width, n_latents = site_width(place.site, config), weights.latent_bias.numel()
    shapes = {
        "pre_bias": (weights.pre_bias, (width,)),
        "encoder": (weights.encoder_weight, (n_latents, width)),
        "latent_bias": (weights.latent_bias, (n_latents,)),
        "decoder, transposed,": (weights.directions, (n_latents, width)),
        "threshold": (weights.thresholds, (n_latents,)),
        "output_bias": (weights.output_bias, (width,)),
        "skip": (weights.skip_weight, (width, width)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or n_latents == 0:
            raise AutoencoderBroken(
                f"{layer.path}: the {name} has shape {list(tensor.shape)}; a dictionary with {n_latents} "
                f"latents for {place.site.value} of this model has {list(shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise AutoencoderBroken(f"{layer.path}: the {name} has numbers that are not finite")

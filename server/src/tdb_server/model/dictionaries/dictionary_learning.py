"""dictionary_learning (https://github.com/saprmarks/dictionary_learning): `ae.pt`, `config.json` of a layer.

`trainer` in the configuration names the class, which says what the tensors mean:

    AutoEncoder             ReLU, `bias` subtracted from inputs and added to outputs
    AutoEncoderNew          ReLU, nothing subtracted
    AutoEncoderTopK         TopK
    BatchTopKSAE, MatryoshkaBatchTopKSAE    a threshold for all latents, saved in training
    JumpReluAutoEncoder     thresholds, nothing subtracted
    GatedAutoEncoder        as SAELens's

The last two multiply latents with the lengths of their directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import (
    gate_and_magnitude,
    pick_tensors,
    positive_count,
    read_state_dict,
    refuse_other_sizes,
    refuse_shapes,
    thresholds_of,
)
from tdb_server.model.dictionaries.own import CONFIG
from tdb_server.model.dictionaries.places import explicit_place, needs_place, refuse_two_places
from tdb_server.model.dictionaries.stored import Place, StoredLayer, with_unit_directions
from tdb_server.model.json_file import read_json_object

if TYPE_CHECKING:
    from hashlib import _Hash

AE = "ae.pt"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")
_CLASSES = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_MATRICES, "threshold"),
    "JumpReluAutoEncoder": (*_MATRICES, "threshold"),
    "GatedAutoEncoder": (
        "encoder.weight",
        "decoder.weight",
        "decoder_bias",
        "r_mag",
        "gate_bias",
        "mag_bias",
    ),
}
"""The tensors of each class."""
_SUBTRACT_NOTHING = ("AutoEncoderNew", "JumpReluAutoEncoder")
_SCALE_LATENTS = ("JumpReluAutoEncoder", "GatedAutoEncoder")

_SUBMODULE = re.compile(r"(resid_post|resid_out|mlp_out|attn_out)_layer_?(\d+)")
_SITES = {
    "resid_post": Site.RESID_POST_MLP,
    "resid_out": Site.RESID_POST_MLP,
    "mlp_out": Site.RESID_DELTA_MLP,
    "attn_out": Site.RESID_DELTA_ATTN,
}


def load_dictionary_learning(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The dictionary of a folder, which updates a digest with what is read.

    Raises:
        AutoencoderBroken: a file is damaged, of another kind, or does not say where it belongs.
    """
    config_path, path = folder / CONFIG, folder / AE
    config = read_json_object(config_path)
    add_settings(digest, config)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise AutoencoderBroken(f"{config_path}: no trainer, which would say what {AE} holds")
    explicit = explicit_place(config_path, config, trainer.get("layer"))
    inferred = _inferred_place(config, trainer)
    if explicit is not None and inferred is not None:
        refuse_two_places(config_path, explicit, inferred)
    place = explicit or inferred
    if place is None:
        name, io = trainer.get("submodule_name"), _io(config)
        raise needs_place(
            config_path, f"submodule_name {name!r} with io {io!r} does not say where it belongs"
        )
    if explicit is None and trainer.get("layer") not in (None, place.layer_index):
        raise AutoencoderBroken(
            f"{config_path}: submodule_name {trainer['submodule_name']!r} beside layer {trainer['layer']!r}"
        )
    if place.site is Site.MLP_TRANSCODER:
        raise AutoencoderBroken(f"{config_path}: dictionary_learning has no transcoders")
    return [StoredLayer(place, path, _weights(path, config_path, trainer, digest))]


def _inferred_place(config: Mapping[str, object], trainer: Mapping[str, object]) -> Place | None:
    """Where it belongs by the submodule's name; None where that is no name that the library gives."""
    name = trainer.get("submodule_name")
    match = _SUBMODULE.fullmatch(name) if isinstance(name, str) else None
    if match is None or _io(config) not in (None, "out"):
        return None
    site = _SITES[match[1]]  # what a block adds is read from its module, before any norm of it
    return Place(site, int(match[2]), is_before_post_norm=site is not Site.RESID_POST_MLP)


def _io(config: Mapping[str, object]) -> object:
    """Which end of the submodule was read, "out" or "in"; None where the settings do not say."""
    buffer = config.get("buffer")
    return buffer.get("io") if isinstance(buffer, dict) else None


def _weights(path: Path, config_path: Path, trainer: Mapping[str, Any], digest: _Hash) -> AutoencoderLayer:
    name = trainer.get("dict_class")
    if name not in _CLASSES:
        raise AutoencoderBroken(
            f"{config_path}: dict_class {name!r} is not supported; {', '.join(_CLASSES)} are"
        )
    state = read_state_dict(path)
    top_k = _top_k(path, config_path, trainer, state) if name == "AutoEncoderTopK" else None
    unused = ("k", "group_sizes", *(["threshold"] if top_k is not None else []))
    tensors = pick_tensors(path, state, _CLASSES[name], digest, unused)
    encoder, directions = _matrices(path, tensors)
    (n_latents, n_inputs), biases = encoder.shape, tensors
    bias_name = next(one for one in ("bias", "decoder.bias", "b_dec", "decoder_bias") if one in tensors)
    output_bias = tensors[bias_name]
    shapes: dict[str, tuple[int, ...]] = {bias_name: (n_inputs,)}
    of_latents = ("encoder.bias", "b_enc", "r_mag", "gate_bias", "mag_bias")
    shapes |= {one: (n_latents,) for one in of_latents if one in tensors}
    refuse_shapes(path, tensors, shapes)
    refuse_other_sizes(config_path, trainer, path, {"activation_dim": n_inputs, "dict_size": n_latents})
    thresholds = None
    if name == "GatedAutoEncoder":
        latent_bias = tensors["mag_bias"]
        encoder, thresholds = gate_and_magnitude(
            path, encoder, tensors["r_mag"], tensors["gate_bias"], latent_bias
        )
    else:
        latent_bias = biases["b_enc"] if "b_enc" in biases else biases["encoder.bias"]
    if "threshold" in tensors:
        if "TopK" in name and bool((tensors["threshold"] < 0).any()):
            raise AutoencoderBroken(
                f"{path}: threshold {float(tensors['threshold'])}: training was too short to save one"
            )
        thresholds = thresholds_of(path, tensors["threshold"], n_latents)
    weights = AutoencoderLayer(
        torch.zeros(n_inputs) if name in _SUBTRACT_NOTHING else output_bias,
        encoder,
        latent_bias,
        directions,
        top_k,
        thresholds=thresholds,
        output_bias=output_bias,
    )
    if name in _SCALE_LATENTS:
        assert thresholds is not None
        weights = replace(with_unit_directions(weights), thresholds=thresholds * directions.norm(dim=1))
    return weights


def _matrices(path: Path, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The encoder [n, s] and the directions [n, s]."""
    is_linear = "encoder.weight" in tensors
    encoder, decoder = (
        tensors[one] for one in (("encoder.weight", "decoder.weight") if is_linear else ("W_enc", "W_dec"))
    )
    if encoder.dim() != 2 or decoder.dim() != 2 or encoder.shape != decoder.T.shape:
        raise AutoencoderBroken(
            f"{path}: encoder {list(encoder.shape)} and decoder {list(decoder.shape)} do not belong together"
        )
    return (encoder, decoder.T.contiguous()) if is_linear else (encoder.T.contiguous(), decoder)


def _top_k(path: Path, config_path: Path, trainer: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    stored = state.get("k")
    k = int(stored) if isinstance(stored, Tensor) and stored.numel() == 1 else trainer.get("k")
    if trainer.get("k") not in (None, k):
        raise AutoencoderBroken(f"{config_path}: k {trainer['k']!r}, but {path} has {k}")
    return positive_count(path, "k", k)

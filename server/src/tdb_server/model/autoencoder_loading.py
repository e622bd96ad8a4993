"""Autoencoders from their folders: ours, the reference's and SAELens's.

    folder/config.json                  {"site": "resid_delta_mlp", "activation": "relu"}; for TopK also "k"
    folder/<layer>.safetensors          pre_bias, encoder.weight [n, s], latent_bias, decoder.weight [s, n]
    folder/<layer>.pt                   the same as a state dict of the reference, with its own activation

or, for one layer, `cfg.json` and `sae_weights.safetensors` of SAELens (see `tdb_server.model.saelens`).
Several folders of one site make one autoencoder, as long as their layers differ.

Whether inputs are layer normed is for `"normalize_activations"` in `config.json` to say, "layer_norm" or
"none". The reference's TopK files do not tell: those of its second generation (`v5_32k`, `v5_128k`) were
trained on normed inputs, but Transformer Debugger itself never norms. They are refused without the setting.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.autoencoder_files import (
    NORM_SCALING_FACTOR,
    NORMALIZE,
    as_vector,
    input_scaling,
    pick_tensors,
    read_safetensors,
    refuse_other_sizes,
)
from tdb_server.model.decoder import Decoder
from tdb_server.model.json_file import read_json_object
from tdb_server.model.regular_file import is_there, refuse_unreadable
from tdb_server.model.saelens import SAELENS_CONFIG, load_saelens_layer

CONFIG = "config.json"
_TENSORS = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
"""What training has counted and stored beside the weights."""

_SETTINGS = ("site", "activation", "k", "n_inputs", "n_latents", NORMALIZE, NORM_SCALING_FACTOR)
_FOR_PEOPLE = ("name", "description", "source", "license")
"""Settings that say nothing about the numbers. Any other may: those that are not known are refused."""


@dataclass(frozen=True)
class _Layer:
    """One layer, the file it came from, and where it belongs."""

    site: Site
    layer_index: int
    path: Path
    weights: AutoencoderLayer


def load_autoencoders(folders: Sequence[Path], decoder: Decoder) -> list[Autoencoder]:
    """The autoencoders of some folders, on the decoder's device and in its type, write norms computed.

    Args:
        folders: in any order.
        decoder: the model they were trained on.

    Returns:
        At most one for the MLP and one for attention.

    Raises:
        AutoencoderBroken: a folder or file is missing or damaged, does not fit the model, or there are two
            for one site and layer, or for two sites of the MLP.
    """
    layers = [layer for folder in folders for layer in _load_folder(folder, decoder)]
    by_site: dict[Site, list[_Layer]] = {}
    for layer in layers:
        by_site.setdefault(layer.site, []).append(layer)
    mlp_sites = [site for site in by_site if site.is_mlp]
    if len(mlp_sites) > 1:
        paths = " and ".join(f"{by_site[site][0].path} ({site.value})" for site in mlp_sites)
        raise AutoencoderBroken(f"two autoencoders for the MLP: {paths}; load one of them")
    autoencoders = [_autoencoder(site, found, decoder) for site, found in by_site.items()]
    for autoencoder in autoencoders:
        autoencoder.compute_write_norms(decoder)
        autoencoder.count_active(decoder)
    return autoencoders


def _load_folder(folder: Path, decoder: Decoder) -> Iterable[_Layer]:
    has_config = is_there(folder / CONFIG)
    config = read_json_object(folder / CONFIG) if has_config else {}
    if is_there(folder / SAELENS_CONFIG):
        if "site" in config:
            raise AutoencoderBroken(f"{folder}: {CONFIG} with a site beside {SAELENS_CONFIG}; remove one")
        can_be_centered = decoder.config.norm == "layer_norm"
        site, layer_index, weights = load_saelens_layer(folder, can_be_centered=can_be_centered)
        return [_Layer(site, layer_index, folder, weights)]
    if not has_config:
        raise AutoencoderBroken(f"{folder}: no autoencoder here: neither {CONFIG} nor {SAELENS_CONFIG}")
    site = _site(config.get("site"), folder)
    unread = sorted(config.keys() - {*_SETTINGS, *_FOR_PEOPLE})
    if unread:
        known = ", ".join((*_SETTINGS, *_FOR_PEOPLE))
        raise AutoencoderBroken(
            f"{folder / CONFIG}: {', '.join(unread)} may change the latents and are not known; {known} are"
        )
    paths = sorted(path for suffix in ("safetensors", "pt") for path in folder.glob(f"*.{suffix}"))
    if not paths:
        raise AutoencoderBroken(f"{folder}: no <layer>.safetensors and no <layer>.pt")
    return [_load_layer(path, site, config) for path in paths]


def _site(name: object, folder: Path) -> Site:
    try:
        return Site(name)
    except ValueError as error:
        sites = ", ".join(site.value for site in Site)
        raise AutoencoderBroken(f"{folder / CONFIG}: site {name!r} is not one of {sites}") from error


def _load_layer(path: Path, site: Site, config: Mapping[str, object]) -> _Layer:
    if not path.stem.isdecimal():
        raise AutoencoderBroken(f"{path}: the name must be the layer's number, like 0{path.suffix}")
    state = read_safetensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    top_k = _top_k(path, state, config)
    if path.suffix == ".pt" and top_k is not None and config.get(NORMALIZE) is None:
        raise AutoencoderBroken(
            f"{path}: a TopK file of the reference does not tell whether inputs are layer normed. Say so in "
            f'{path.parent / CONFIG}: "{NORMALIZE}": "layer_norm" where sparse_autoencoder\'s own loader is '
            'meant, as for v5_32k and v5_128k; "none" for what Transformer Debugger computes'
        )
    norms_inputs, factor = input_scaling(path.parent / CONFIG, config)
    pre_bias, encoder, latent_bias, decoder = pick_tensors(
        path, _untied(path, state), _TENSORS, ("activation", "activation_state_dict", *_STATISTICS)
    )
    if decoder.dim() != 2:
        raise AutoencoderBroken(
            f"{path}: decoder.weight must be a matrix, not of shape {tuple(decoder.shape)}"
        )
    if factor != 1:
        encoder, pre_bias, decoder = encoder * factor, pre_bias / factor, decoder / factor
    weights = AutoencoderLayer(
        as_vector(pre_bias), encoder, as_vector(latent_bias), decoder.T.contiguous(), top_k, norms_inputs
    )
    sizes = {"n_inputs": weights.pre_bias.numel(), "n_latents": weights.latent_bias.numel()}
    refuse_other_sizes(path.parent / CONFIG, config, path, sizes)
    return _Layer(site, int(path.stem), path, weights)


def _untied(path: Path, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the reference's tied autoencoders the decoder is the encoder, transposed, which is stored twice."""
    tied, encoder = state.get("decoder.linear.weight"), state.get("encoder.weight")
    if tied is None or "decoder.weight" in state:
        return state
    if not isinstance(tied, Tensor) or not isinstance(encoder, Tensor) or not torch.equal(tied, encoder):
        raise AutoencoderBroken(
            f"{path}: decoder.linear.weight is not encoder.weight, so it is not tied to it"
        )
    return {name: one for name, one in state.items() if name != "decoder.linear.weight"} | {
        "decoder.weight": encoder.T
    }


def _read_state_dict(path: Path) -> dict[str, Any]:
    """A pickled file, of which nothing but numbers, texts and containers is ever read."""
    refuse_unreadable(path, kind=AutoencoderBroken)
    _refuse_compression(path)
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # files of newer pickle protocols are none of our business
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise all sorts of errors
        raise AutoencoderBroken(f"{path}: not a state dict that can be read safely") from error
    if not isinstance(state, dict):
        raise AutoencoderBroken(f"{path}: not a state dict but a {type(state).__name__}")
    return state


def _refuse_compression(path: Path) -> None:
    """torch stores tensors as they are. What is packed may be a thousand times as large as the file."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise AutoencoderBroken(f"{path}: not a state dict that can be read safely") from error
    if n_bytes > path.stat().st_size:
        raise AutoencoderBroken(f"{path}: holds {n_bytes} bytes, more than it is long; torch never packs")


def _top_k(path: Path, state: Mapping[str, Any], config: Mapping[str, object]) -> int | None:
    """The k of TopK, None for ReLU: as the state dict says, else `config.json`; both must not differ."""
    if "activation" not in state:
        return _top_k_of_config(path, config)
    top_k = _top_k_of_state(path, state)
    is_other = "activation" in config and _top_k_of_config(path, config) != top_k
    if is_other or config.get("k") not in (None, top_k):
        raise AutoencoderBroken(
            f"{path}: its activation is {_activation(top_k)}, but {path.parent / CONFIG} says activation "
            f"{config.get('activation')!r}, k {config.get('k')!r}"
        )
    return top_k


def _top_k_of_state(path: Path, state: Mapping[str, Any]) -> int | None:
    match state["activation"], state.get("activation_state_dict"):
        case "ReLU", _:
            return None
        case "TopK", {"k": int(k), "postact_fn": "ReLU"} if k > 0 and k is not True:
            return k
        case activation, settings:
            raise AutoencoderBroken(
                f"{path}: activation {activation!r} with {settings!r} is not ReLU or TopK of ReLU"
            )


def _top_k_of_config(path: Path, config: Mapping[str, object]) -> int | None:
    match config.get("activation", "relu"), config.get("k"):
        case "relu", None:
            return None
        case "topk", int(k) if k > 0 and k is not True:
            return k
        case activation, k:
            raise AutoencoderBroken(
                f"{path.parent / CONFIG}: activation {activation!r} with k {k!r}, not relu, or topk with a k"
            )


def _autoencoder(site: Site, layers: Sequence[_Layer], decoder: Decoder) -> Autoencoder:
    found: dict[int, AutoencoderLayer] = {}
    first = layers[0]
    for layer in sorted(layers, key=lambda one: one.layer_index):
        _check(layer, decoder)
        if layer.layer_index in found:
            raise AutoencoderBroken(f"{layer.path}: layer {layer.layer_index} of {site.value} is given twice")
        if _size(layer) != _size(first):
            raise AutoencoderBroken(
                f"{layer.path}: {_size(layer)}, unlike {first.path} with {_size(first)}; "
                "layers of a site must be alike"
            )
        found[layer.layer_index] = _on(decoder, layer.weights)
    return Autoencoder(site, found)


def _size(layer: _Layer) -> str:
    normed = ", inputs layer normed" if layer.weights.norms_inputs else ""
    return f"{len(layer.weights.latent_bias)} latents, {_activation(layer.weights.top_k)}{normed}"


def _activation(top_k: int | None) -> str:
    return "ReLU" if top_k is None else f"top {top_k}"


def _check(layer: _Layer, decoder: Decoder) -> None:
    """Refuses weights that do not fit the model or each other, and numbers that are not finite."""
    weights, config = layer.weights, decoder.config
    if layer.layer_index >= config.n_layers:
        raise AutoencoderBroken(
            f"{layer.path}: for layer {layer.layer_index}; the model has layers 0 to {config.n_layers - 1}"
        )
    width = config.n_neurons if layer.site is Site.MLP_POST_ACT else config.d_model
    n_latents = weights.latent_bias.numel()
    shapes = {
        "pre_bias": (weights.pre_bias, (width,)),
        "encoder": (weights.encoder_weight, (n_latents, width)),
        "latent_bias": (weights.latent_bias, (n_latents,)),
        "decoder, transposed,": (weights.directions, (n_latents, width)),
    }
    for name, (tensor, shape) in shapes.items():
        if tuple(tensor.shape) != shape or n_latents == 0:
            raise AutoencoderBroken(
                f"{layer.path}: the {name} has shape {list(tensor.shape)}; an autoencoder with {n_latents} "
                f"latents for {layer.site.value} of this model has {list(shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise AutoencoderBroken(f"{layer.path}: the {name} has numbers that are not finite")


def _on(decoder: Decoder, layer: AutoencoderLayer) -> AutoencoderLayer:
    """The layer on the decoder's device, in its type."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(decoder.device, decoder.dtype)

    return AutoencoderLayer(
        moved(layer.pre_bias),
        moved(layer.encoder_weight),
        moved(layer.latent_bias),
        moved(layer.directions),
        layer.top_k,
        layer.norms_inputs,
    )

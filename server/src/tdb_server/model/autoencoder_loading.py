"""Autoencoders from their folders: ours, the reference's and SAELens's.

    folder/config.json                  {"site": "resid_delta_mlp", "activation": "relu"}; for TopK also "k"
    folder/<layer>.safetensors          pre_bias, encoder.weight [n, s], latent_bias, decoder.weight [s, n]
    folder/<layer>.pt                   the same as a state dict of the reference, with its own activation

or, for one layer, `cfg.json` and `sae_weights.safetensors` of SAELens (see `tdb_server.model.saelens`).
Several folders of one site make one autoencoder, as long as their layers differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Decoder
from tdb_server.model.json_file import read_json_object
from tdb_server.model.saelens import SAELENS_CONFIG, load_saelens_layer

CONFIG = "config.json"
_TENSORS = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")


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
    layers = [layer for folder in folders for layer in _load_folder(folder)]
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
    return autoencoders


def _load_folder(folder: Path) -> Iterable[_Layer]:
    if (folder / SAELENS_CONFIG).is_file():
        site, layer_index, weights = load_saelens_layer(folder)
        return [_Layer(site, layer_index, folder, weights)]
    if not (folder / CONFIG).is_file():
        raise AutoencoderBroken(f"{folder}: no autoencoder here: neither {CONFIG} nor {SAELENS_CONFIG}")
    config = read_json_object(folder / CONFIG)
    site = _site(config.get("site"), folder)
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
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_state_dict(path)
    top_k = _top_k_of_state(path, state) if "activation" in state else _top_k_of_config(path, config)
    if "decoder.weight" not in state and "decoder.linear.weight" in state:
        # The reference's tied autoencoders: the decoder is the encoder, transposed.
        state = {**state, "decoder.weight": state["encoder.weight"].T}
    missing = [name for name in _TENSORS if not isinstance(state.get(name), Tensor)]
    if missing:
        raise AutoencoderBroken(f"{path}: no tensor called {', '.join(missing)}")
    pre_bias, encoder, latent_bias, decoder = (state[name] for name in _TENSORS)
    if decoder.dim() != 2:
        raise AutoencoderBroken(
            f"{path}: decoder.weight must be a matrix, not of shape {tuple(decoder.shape)}"
        )
    weights = AutoencoderLayer(pre_bias, encoder, latent_bias, decoder.T.contiguous(), top_k)
    return _Layer(site, int(path.stem), path, weights)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise AutoencoderBroken(f"{path}: not a safetensors file: {error}") from error


def _read_state_dict(path: Path) -> dict[str, Any]:
    """A pickled file, of which nothing but numbers, texts and containers is ever read."""
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


def _top_k_of_state(path: Path, state: Mapping[str, Any]) -> int | None:
    match state["activation"], state.get("activation_state_dict"):
        case "ReLU", _:
            return None
        case "TopK", {"k": int(k), "postact_fn": "ReLU"} if k > 0:
            return k
        case activation, settings:
            raise AutoencoderBroken(
                f"{path}: activation {activation!r} with {settings!r} is not ReLU or TopK of ReLU"
            )


def _top_k_of_config(path: Path, config: Mapping[str, object]) -> int | None:
    match config.get("activation", "relu"), config.get("k"):
        case "relu", _:
            return None
        case "topk", int(k) if k > 0:
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
    top_k = layer.weights.top_k
    return f"{len(layer.weights.latent_bias)} latents, {'ReLU' if top_k is None else f'top {top_k}'}"


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
    )

"""Autoencoders of SAELens (https://github.com/jbloomAus/SAELens): one layer per folder.

    latents = act(W_enc (x - b_dec) + b_enc), or without b_dec where `apply_b_dec_to_input` is false
    reconstruction = W_dec latents + b_dec

The pre-activations are `E x + c` in either case, so they come out the same as ours with
`latent_bias = c + E pre_bias`. Models run with centred writing weights feed an autoencoder `x` less its mean
over channels; then the encoder's rows are centred instead. A factor for all inputs, and the norms of
directions that TopK may multiply latents with, go into the weights. Layer norm of inputs is ours as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.autoencoder_files import (
    NORM_SCALING_FACTOR,
    NORMALIZE,
    as_vector,
    input_scaling,
    pick_tensors,
    read_safetensors,
    refuse_other_sizes,
)
from tdb_server.model.json_file import read_json_object

SAELENS_CONFIG = "cfg.json"
SAELENS_WEIGHTS = "sae_weights.safetensors"

_SITES = {
    "hook_mlp_out": Site.RESID_DELTA_MLP,
    "mlp.hook_post": Site.MLP_POST_ACT,
    "hook_attn_out": Site.RESID_DELTA_ATTN,
}
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""What early versions called settings."""

_READ = frozenset(
    (
        *("hook_name", "hook_layer", "hook_head_index", "hook_name_out", "d_in", "d_sae", "d_out"),
        *("architecture", "activation_fn", "activation_fn_kwargs", "k", "rescale_acts_by_decoder_norm"),
        *("apply_b_dec_to_input", "reshape_activations", "finetuning_scaling_factor"),
        *("model_from_pretrained_kwargs", NORMALIZE, NORM_SCALING_FACTOR),
    )
)
"""The settings that decide what latents are; the others tell of training."""

_HARMLESS: dict[str, tuple[object, ...]] = {
    "reshape_activations": (None, "none"),
    "finetuning_scaling_factor": (None, False),
    "hook_head_index": (None,),
}
"""Settings that change the latents, and the values at which they do not."""

Settings = Mapping[str, object]


def load_saelens_layer(folder: Path, *, can_be_centered: bool) -> tuple[Site, int, AutoencoderLayer]:
    """The autoencoder of a folder: its site, its layer and its weights.

    Args:
        folder: of `cfg.json` and `sae_weights.safetensors`.
        can_be_centered: whether the model's writing weights can be centred, which takes layer norms.

    Raises:
        AutoencoderBroken: a file is missing or damaged, says two things at once, or is of a kind that is not
            supported.
    """
    path = folder / SAELENS_CONFIG
    config = _settings(path)
    site, layer_index = _place(config, path)
    for key, values in _HARMLESS.items():
        if config.get(key) not in values:
            raise AutoencoderBroken(f"{path}: {key} {config[key]!r} is not supported")
    return site, layer_index, _layer(folder / SAELENS_WEIGHTS, path, site, config, can_be_centered)


def _settings(path: Path) -> dict[str, object]:
    """What the file says: its own entries and those of `metadata`, under their present names."""
    config = read_json_object(path)
    metadata = config.get("metadata")
    found: dict[str, object] = {}
    for prefix, entries in (("", config), ("metadata.", metadata if isinstance(metadata, dict) else {})):
        for key, value in entries.items():
            name = _OLD_NAMES.get(key, key)
            if name not in _READ:
                continue
            if found.get(name) is None:
                found[name] = value
            elif value not in (None, found[name]):
                raise AutoencoderBroken(f"{path}: {prefix}{key} {value!r} beside {found[name]!r} for {name}")
    return found


def _place(config: Settings, path: Path) -> tuple[Site, int]:
    hook, layer_index = config.get("hook_name"), config.get("hook_layer")
    named = str(hook).replace("{layer}", str(layer_index))
    match = _HOOK.fullmatch(named)
    if match is None or match[2] not in _SITES:
        known = ", ".join(f"blocks.N.{name} ({site.value})" for name, site in _SITES.items())
        raise AutoencoderBroken(f"{path}: trained on hook_name {hook!r}, which is not one of {known}")
    if layer_index not in (None, int(match[1])):
        raise AutoencoderBroken(f"{path}: hook_name {hook!r} beside hook_layer {layer_index!r}")
    if config.get("hook_name_out") not in (None, hook):
        raise AutoencoderBroken(
            f"{path}: transcoders are not supported: hook_name {hook!r}, hook_name_out "
            f"{config['hook_name_out']!r}"
        )
    return _SITES[match[2]], int(match[1])


def _top_k(config: Settings, path: Path) -> int | None:
    """The k of a TopK autoencoder, None for one with ReLU."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", "relu")
    if architecture not in ("standard", "topk") or activation not in ("relu", "topk"):
        raise AutoencoderBroken(
            f"{path}: architecture {architecture!r} with activation {activation!r} is not "
            "standard or topk, with ReLU"
        )
    kwargs = config.get("activation_fn_kwargs")
    given = [config.get("k"), kwargs.get("k") if isinstance(kwargs, dict) else None]
    values = [one for one in given if one is not None]
    if architecture == "standard" and activation == "relu":
        if values:
            raise AutoencoderBroken(f"{path}: k {values[0]!r} beside architecture {architecture!r} with relu")
        return None
    if not values:
        raise AutoencoderBroken(f"{path}: topk without a k")
    if values[0] != values[-1]:
        raise AutoencoderBroken(f"{path}: k {given[0]!r} beside activation_fn_kwargs.k {given[1]!r}")
    k = values[0]
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise AutoencoderBroken(f"{path}: k must be a whole number above 0, not {k!r}")
    return k


def _flag(config: Settings, path: Path, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise AutoencoderBroken(f"{path}: {key} must be true or false, not {value!r}")
    return value


def _layer(
    path: Path, config_path: Path, site: Site, config: Settings, can_be_centered: bool
) -> AutoencoderLayer:
    top_k = _top_k(config, config_path)
    norms_inputs, factor = input_scaling(config_path, config)
    w_enc, b_enc, w_dec, b_dec = _weights(path, config_path, config)
    encoder, constant = w_enc.T.contiguous(), b_enc
    if _flag(config, config_path, "apply_b_dec_to_input", True):
        constant = constant - encoder @ b_dec
    if factor != 1:
        encoder, w_dec, b_dec = encoder * factor, w_dec / factor, b_dec / factor
    if _flag(config, config_path, "rescale_acts_by_decoder_norm", False):
        if top_k is None:
            raise AutoencoderBroken(
                f"{config_path}: rescale_acts_by_decoder_norm is supported with topk alone"
            )
        norms = w_dec.norm(dim=1)
        encoder, constant, w_dec = encoder * norms[:, None], constant * norms, w_dec / norms[:, None]
    kwargs = config.get("model_from_pretrained_kwargs")
    is_centered = isinstance(kwargs, dict) and bool(kwargs.get("center_writing_weights"))
    if is_centered and can_be_centered and site is not Site.MLP_POST_ACT:
        encoder = encoder - encoder.mean(dim=1, keepdim=True)
    latent_bias = constant + encoder @ b_dec
    return AutoencoderLayer(b_dec, encoder, latent_bias, w_dec.contiguous(), top_k, norms_inputs)


def _weights(path: Path, config_path: Path, config: Settings) -> list[Tensor]:
    """W_enc [s, n], b_enc [n], W_dec [n, s] and b_dec [s], in float32."""
    state = read_safetensors(path)
    scaling = state.get("scaling_factor")
    if isinstance(scaling, Tensor) and bool((scaling == 1).all()):
        del state["scaling_factor"]  # early versions stored it, whether they used it or not
    w_enc, b_enc, w_dec, b_dec = (one.float() for one in pick_tensors(path, state, _NAMES))
    b_enc, b_dec = as_vector(b_enc), as_vector(b_dec)
    n_inputs, n_latents = b_dec.numel(), b_enc.numel()
    shapes = [list(one.shape) for one in (w_enc, b_enc, w_dec, b_dec)]
    if shapes != [[n_inputs, n_latents], [n_latents], [n_latents, n_inputs], [n_inputs]]:
        told = ", ".join(f"{name} {shape}" for name, shape in zip(_NAMES, shapes, strict=True))
        raise AutoencoderBroken(f"{path}: {told} do not belong to {n_inputs} inputs and {n_latents} latents")
    refuse_other_sizes(config_path, config, path, {"d_in": n_inputs, "d_sae": n_latents, "d_out": n_inputs})
    return [w_enc, b_enc, w_dec, b_dec]

"""Autoencoders of SAELens (https://github.com/jbloomAus/SAELens): one layer per folder.

    latents = act(W_enc (x - b_dec) + b_enc), or without b_dec where `apply_b_dec_to_input` is false
    reconstruction = W_dec latents + b_dec

The pre-activations are `E x + c` in either case, so they come out the same as ours with
`latent_bias = c + E pre_bias`. Models run with centred writing weights feed an autoencoder `x` less its mean
over channels; then the encoder's rows are centred instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
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


def load_saelens_layer(folder: Path) -> tuple[Site, int, AutoencoderLayer]:
    """The autoencoder of a folder: its site, its layer and its weights.

    Raises:
        AutoencoderBroken: a file is missing or damaged, or it is of a kind that is not supported.
    """
    path = folder / SAELENS_CONFIG
    config = read_json_object(path)
    metadata = config.get("metadata")
    config = {**metadata, **config} if isinstance(metadata, dict) else config
    site, layer_index = _place(config, path)
    top_k = _top_k(config, path)
    _refuse_unsupported(config, path)
    return site, layer_index, _weights(folder / SAELENS_WEIGHTS, site, config, top_k)


def _place(config: Mapping[str, object], path: Path) -> tuple[Site, int]:
    hook = config.get("hook_name", config.get("hook_point"))
    match = _HOOK.fullmatch(str(hook))
    if match is None or match[2] not in _SITES:
        known = ", ".join(f"blocks.N.{name} ({site.value})" for name, site in _SITES.items())
        raise AutoencoderBroken(f"{path}: trained on {hook!r}, which is not one of {known}")
    return _SITES[match[2]], int(match[1])


def _top_k(config: Mapping[str, object], path: Path) -> int | None:
    """The k of a TopK autoencoder, None for one with ReLU."""
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if architecture not in ("standard", "topk") or activation not in ("relu", "topk"):
        raise AutoencoderBroken(
            f"{path}: architecture {architecture!r} with activation {activation!r} is not "
            "standard or topk, with ReLU"
        )
    if architecture == "standard" and activation == "relu":
        return None
    settings = config.get("activation_fn_kwargs")
    k = config.get("k", settings.get("k") if isinstance(settings, dict) else None)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise AutoencoderBroken(f"{path}: topk without a k")
    return k


def _refuse_unsupported(config: Mapping[str, object], path: Path) -> None:
    harmless: dict[str, tuple[object, ...]] = {
        "normalize_activations": (None, "none"),
        "reshape_activations": (None, "none"),
        "finetuning_scaling_factor": (None, False),
        "rescale_acts_by_decoder_norm": (None, False),
    }
    for key, values in harmless.items():
        if config.get(key) not in values:
            raise AutoencoderBroken(f"{path}: {key} {config[key]!r} is not supported")


def _weights(path: Path, site: Site, config: Mapping[str, object], top_k: int | None) -> AutoencoderLayer:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AutoencoderBroken(f"{path}: not a safetensors file: {error}") from error
    missing = [name for name in _NAMES if name not in state]
    if missing:
        raise AutoencoderBroken(f"{path}: no tensor called {', '.join(missing)}")
    w_enc, b_enc, w_dec, b_dec = (state[name].float() for name in _NAMES)
    n_inputs, n_latents = b_dec.numel(), b_enc.numel()
    if w_enc.shape != (n_inputs, n_latents) or w_dec.shape != (n_latents, n_inputs):
        raise AutoencoderBroken(
            f"{path}: W_enc {list(w_enc.shape)} and W_dec {list(w_dec.shape)} do not belong to {n_inputs} "
            f"inputs and {n_latents} latents"
        )
    encoder, constant = w_enc.T.contiguous(), b_enc
    if config.get("apply_b_dec_to_input", True):
        constant = constant - encoder @ b_dec
    kwargs = config.get("model_from_pretrained_kwargs")
    is_centered = isinstance(kwargs, dict) and bool(kwargs.get("center_writing_weights"))
    if is_centered and site is not Site.MLP_POST_ACT:
        encoder = encoder - encoder.mean(dim=1, keepdim=True)
    return AutoencoderLayer(b_dec, encoder, constant + encoder @ b_dec, w_dec.contiguous(), top_k)

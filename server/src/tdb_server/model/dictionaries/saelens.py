"""SAELens (https://github.com/jbloomAus/SAELens): `cfg.json` and `sae_weights.safetensors` of one layer.

    latents = act(W_enc (x - b_dec) + b_enc), or without b_dec where `apply_b_dec_to_input` is false
    reconstruction = W_dec latents + b_dec + W_skip x

Settings stand in the file itself, and since version 6 partly in its `metadata`. A gated autoencoder computes
magnitudes `exp(r_mag) (W_enc x) + b_mag` and keeps them where `W_enc x + b_gate > 0`, which is a threshold on
the magnitude of `b_mag - exp(r_mag) b_gate`. A factor for all inputs, and the norms of directions that
TopK may multiply latents with, go into the weights.

Models run with centred writing weights feed a dictionary `x` less its mean over channels. Files of versions
that did not say whether they were, and are in no catalogue that does, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import (
    NORM_SCALING_FACTOR,
    NORMALIZE,
    flag,
    gate_and_magnitude,
    input_scaling,
    pick_tensors,
    positive_count,
    read_safetensors,
    refuse_other_sizes,
    refuse_shapes,
    thresholds_of,
)
from tdb_server.model.dictionaries.places import explicit_place, place_of_hook, refuse_two_places
from tdb_server.model.dictionaries.stored import Place, StoredLayer, scaled, with_unit_directions
from tdb_server.model.json_file import read_json_object

if TYPE_CHECKING:
    from hashlib import _Hash

SAELENS_CONFIG = "cfg.json"
SAELENS_WEIGHTS = "sae_weights.safetensors"

_TENSORS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "gated": ("b_gate", "r_mag", "b_mag"),
    "jumprelu": ("b_enc", "threshold"),
    "batchtopk": ("b_enc", "topk_threshold"),
    "matryoshka_batchtopk": ("b_enc", "topk_threshold"),
    "transcoder": ("b_enc",),
    "skip_transcoder": ("b_enc", "W_skip"),
    "jumprelu_transcoder": ("b_enc", "threshold"),
    "jumprelu_skip_transcoder": ("b_enc", "threshold", "W_skip"),
}
"""What each architecture has beside W_enc, W_dec and b_dec. BatchTopK's are those of a checkpoint; what it is
saved as in the end is jumprelu."""

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
        *("model_from_pretrained_kwargs", "sae_lens_version", "sae_lens_training_version"),
        *("site", "layer", "input_gain", "neuronpedia_id", NORMALIZE, NORM_SCALING_FACTOR),
    )
)
"""The settings that decide what latents are; the others tell of training."""

_HARMLESS: dict[str, tuple[object, ...]] = {
    "finetuning_scaling_factor": (None, False),
    "hook_head_index": (None,),
}
"""Settings that change the latents, and the values at which they do not."""

_CENTRED_IN_THE_CATALOGUE = re.compile(
    r"jbloom(/|--)GPT2-Small-SAEs-Reformatted|jbloom(/|--)GPT2-Small-Feature-Splitting-Experiment-Layer-8"
    r"|tommmcgrath(/|--)gpt2-small-mlp-out-saes"
)
"""Repositories of which SAELens's list of pretrained dictionaries says `center_writing_weights: true`."""
_CHANGES_HEADS = ("fold_value_biases", "refactor_factored_attn_matrices")
"""What TransformerLens can do to a model that changes what heads give, though not what attention adds."""
_CENTRED_SITES = frozenset(Site) - {Site.MLP_POST_ACT, Site.ATTN_V_OUT, Site.MLP_TRANSCODER}
"""Where centred weights change what is read: what is behind a norm is the same."""

Settings = Mapping[str, object]


def load_saelens(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The dictionary of a folder.

    Args:
        folder: of `cfg.json` and `sae_weights.safetensors`.
        digest: updated with what is read.

    Raises:
        AutoencoderBroken: a file is missing or damaged, says two things at once, or is of a kind that is not
            supported.
    """
    path = folder / SAELENS_CONFIG
    config = _settings(path)
    add_settings(digest, config)
    for key, values in _HARMLESS.items():
        if config.get(key) not in values:
            raise AutoencoderBroken(f"{path}: {key} {config[key]!r} is not supported")
    place = _place(config, path)
    if config.get("reshape_activations") not in (None, "none") and not (
        config["reshape_activations"] == "hook_z" and place.site is Site.ATTN_V_OUT
    ):
        raise AutoencoderBroken(
            f"{path}: reshape_activations {config['reshape_activations']!r} is not supported"
        )
    for key in _CHANGES_HEADS:
        if place.site is Site.ATTN_V_OUT and _model_settings(config).get(key):
            raise AutoencoderBroken(
                f"{path}: trained on heads of a model with {key}, which are others than the model's own"
            )
    weights = _weights(folder / SAELENS_WEIGHTS, path, place, config, digest)
    return [StoredLayer(place, folder, weights, _is_centred(path, place, config))]


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


def _place(config: Settings, path: Path) -> Place:
    explicit = explicit_place(path, config)
    if explicit is None:
        return _place_of_hooks(config, path)
    try:
        inferred = _place_of_hooks(config, path)
    except AutoencoderBroken:
        return explicit  # which is there for hooks whose names are not known here
    refuse_two_places(path, explicit, inferred)
    return explicit


def _place_of_hooks(config: Settings, path: Path) -> Place:
    hook, hook_out, layer_index = (
        config.get("hook_name"),
        config.get("hook_name_out"),
        config.get("hook_layer"),
    )
    folds_gain = bool(_model_settings(config).get("fold_ln"))
    if layer_index is None and "{layer}" in str(hook):
        raise AutoencoderBroken(f"{path}: hook_name {hook!r} without a hook_layer")
    read, written = (
        None if one is None else str(one).replace("{layer}", str(layer_index)) for one in (hook, hook_out)
    )
    place = place_of_hook(path, read or "", written, folds_gain=folds_gain)
    layer_in_name = re.match(r"blocks\.(\d+)\.", read or "")
    if layer_in_name and layer_index not in (None, int(layer_in_name[1])):
        raise AutoencoderBroken(f"{path}: hook_name {hook!r} beside hook_layer {layer_index!r}")
    return place


def _model_settings(config: Settings) -> Mapping[str, object]:
    found = config.get("model_from_pretrained_kwargs")
    return found if isinstance(found, dict) else {}


def _is_centred(path: Path, place: Place, config: Settings) -> bool:
    if place.site not in _CENTRED_SITES:
        return False
    is_centred = _model_settings(config).get("center_writing_weights")
    if is_centred is not None or isinstance(config.get("model_from_pretrained_kwargs"), dict):
        return bool(is_centred)
    if _CENTRED_IN_THE_CATALOGUE.search(str(path)):
        return True
    if config.get("sae_lens_version") or config.get("sae_lens_training_version"):
        return False  # these ran models as they are where nothing else is said
    raise AutoencoderBroken(
        f"{path}: does not tell whether the model was run with centred writing weights. Say so "
        'there: "model_from_pretrained_kwargs": {"center_writing_weights": true} or false'
    )


def _architecture(config: Settings, path: Path) -> str:
    architecture, activation = config.get("architecture", "standard"), config.get("activation_fn", "relu")
    if architecture not in _TENSORS:
        raise AutoencoderBroken(
            f"{path}: architecture {architecture!r} is not supported; {', '.join(_TENSORS)} are"
        )
    if activation == "topk" and architecture in ("standard", "topk"):
        return "topk"
    if activation != "relu":
        raise AutoencoderBroken(
            f"{path}: architecture {architecture!r} with activation {activation!r}, not relu"
        )
    return str(architecture)


def _top_k(config: Settings, path: Path, architecture: str) -> int | None:
    kwargs = config.get("activation_fn_kwargs")
    given = [config.get("k"), kwargs.get("k") if isinstance(kwargs, dict) else None]
    values = [one for one in given if one is not None]
    if architecture != "topk":
        if values and "batchtopk" not in architecture:
            raise AutoencoderBroken(f"{path}: k {values[0]!r} beside architecture {architecture!r}")
        return None
    if not values:
        raise AutoencoderBroken(f"{path}: topk without a k")
    if values[0] != values[-1]:
        raise AutoencoderBroken(f"{path}: k {given[0]!r} beside activation_fn_kwargs.k {given[1]!r}")
    return positive_count(path, "k", values[0])


def _weights(
    path: Path, config_path: Path, place: Place, config: Settings, digest: _Hash
) -> AutoencoderLayer:
    architecture = _architecture(config, config_path)
    is_transcoder = place.site is Site.MLP_TRANSCODER
    if is_transcoder != ("transcoder" in architecture):
        raise AutoencoderBroken(f"{config_path}: architecture {architecture!r} beside {place.site.value}")
    top_k = _top_k(config, config_path, architecture)
    norms_inputs, factor = input_scaling(config_path, config)
    if is_transcoder and (norms_inputs or factor != 1):
        raise AutoencoderBroken(
            f"{config_path}: {NORMALIZE} {config[NORMALIZE]!r} of a transcoder is not supported"
        )
    tensors = _tensors(path, config_path, architecture, config, digest)
    subtracts = flag(config_path, config, "apply_b_dec_to_input", not is_transcoder)
    if subtracts and is_transcoder:
        raise AutoencoderBroken(f"{config_path}: apply_b_dec_to_input of a transcoder is not supported")
    encoder, output_bias, n_latents = tensors["W_enc"].T.contiguous(), tensors["b_dec"], len(tensors["W_dec"])
    thresholds: Tensor | None = None
    if architecture == "gated":
        latent_bias = tensors["b_mag"]
        encoder, thresholds = gate_and_magnitude(
            path, encoder, tensors["r_mag"], tensors["b_gate"], latent_bias
        )
    else:
        latent_bias = tensors["b_enc"]
        threshold = tensors.get("threshold", tensors.get("topk_threshold"))
        if threshold is not None:
            thresholds = thresholds_of(path, threshold, n_latents)
    weights = AutoencoderLayer(
        output_bias if subtracts else torch.zeros(encoder.shape[1]),
        encoder,
        latent_bias,
        tensors["W_dec"].contiguous(),
        top_k,
        norms_inputs,
        thresholds,
        output_bias,
        tensors.get("W_skip"),
    )
    if factor != 1:
        weights = scaled(weights, factor)
    if flag(config_path, config, "rescale_acts_by_decoder_norm", False):
        if "topk" not in architecture:
            raise AutoencoderBroken(
                f"{config_path}: rescale_acts_by_decoder_norm is supported with topk alone"
            )
        if thresholds is not None:  # of latents scaled by the directions as they are stored
            weights = replace(weights, thresholds=thresholds / factor)
        weights = with_unit_directions(weights)
    return weights


def _tensors(
    path: Path, config_path: Path, architecture: str, config: Settings, digest: _Hash
) -> dict[str, Tensor]:
    """The tensors of an architecture, in float32: W_enc [s, n], W_dec [n, s], vectors."""
    state = read_safetensors(path)
    scaling = state.get("scaling_factor")
    if isinstance(scaling, Tensor) and bool((scaling == 1).all()):
        del state["scaling_factor"]  # early versions stored it, whether they used it or not
    names = ("W_enc", "W_dec", "b_dec", *_TENSORS[architecture])
    tensors = pick_tensors(path, state, names, digest)
    w_enc, w_dec = tensors["W_enc"], tensors["W_dec"]
    if w_enc.dim() != 2 or w_dec.dim() != 2:
        raise AutoencoderBroken(
            f"{path}: W_enc {list(w_enc.shape)}, W_dec {list(w_dec.shape)} are not matrices"
        )
    (n_inputs, n_latents), n_outputs = w_enc.shape, w_dec.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        name: (n_latents,) for name in _TENSORS[architecture] if not name.endswith("threshold")
    }
    shapes |= {"W_dec": (n_latents, n_outputs), "b_dec": (n_outputs,)}
    if "W_skip" in shapes:
        shapes["W_skip"] = (n_outputs, n_inputs)
    refuse_shapes(path, tensors, shapes)
    refuse_other_sizes(config_path, config, path, {"d_in": n_inputs, "d_sae": n_latents, "d_out": n_outputs})
    return tensors

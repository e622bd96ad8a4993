"""Our own format, and the state dicts of the reference, whose folders look alike.

    folder/config.json                  {"site": "resid_delta_mlp", "activation": "relu"}
    folder/<layer>.safetensors          pre_bias, encoder.weight [n, s], latent_bias, decoder.weight [s, n]
    folder/<layer>.pt                   the same as a state dict of the reference, with its own activation

`activation` is "relu", "topk" with a "k", or "jumprelu" with a tensor "threshold" [n]. "output_bias" [s] is
added to reconstructions in place of `pre_bias`, and a transcoder may have a "skip.weight" [s, s].

Whether inputs are layer normed is for `"normalize_activations"` to say, "layer_norm" or "none". The
reference's TopK files do not tell: those of its second generation (`v5_32k`, `v5_128k`) were trained on
normed inputs, but Transformer Debugger itself never norms. They are refused without the setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import (
    NORM_SCALING_FACTOR,
    NORMALIZE,
    input_scaling,
    pick_tensors,
    read_safetensors,
    read_state_dict,
    refuse_other_sizes,
    refuse_unknown,
    thresholds_of,
)
from tdb_server.model.dictionaries.places import INPUT_GAIN, LAYER, SITE, explicit_place, needs_place
from tdb_server.model.dictionaries.stored import StoredLayer, scaled
from tdb_server.model.json_file import read_json_object

if TYPE_CHECKING:
    from hashlib import _Hash

CONFIG = "config.json"
_TENSORS = ("pre_bias", "encoder.weight", "latent_bias", "decoder.weight")
_MORE_TENSORS = ("threshold", "output_bias", "skip.weight")
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
"""What training has counted and stored beside the weights."""

_SETTINGS = (SITE, "activation", "k", "n_inputs", "n_latents", NORMALIZE, NORM_SCALING_FACTOR, INPUT_GAIN)
FOR_PEOPLE = ("name", "description", "source", "license", "labels", "link")
"""Settings that say nothing about the numbers. Any other may: those that are not known are refused."""


def load_own(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The layers of a folder, which update a digest with what is read.

    Raises:
        AutoencoderBroken: a file is missing or damaged, says two things at once, or is of another kind.
    """
    config = read_json_object(folder / CONFIG)
    add_settings(digest, config)
    if config.get(SITE) is None and "model_type" in config:
        raise AutoencoderBroken(f"{folder}: the folder of a model, not of a dictionary")
    if config.get(SITE) is None:
        raise needs_place(folder / CONFIG, f"no {SITE}", needs_layer=False)
    refuse_unknown(folder / CONFIG, config, (*_SETTINGS, *FOR_PEOPLE))
    paths = sorted(path for suffix in ("safetensors", "pt") for path in folder.glob(f"*.{suffix}"))
    if not paths:
        raise AutoencoderBroken(f"{folder}: no <layer>.safetensors and no <layer>.pt")
    return [_load_layer(path, config, digest) for path in paths]


def _load_layer(path: Path, config: Mapping[str, object], digest: _Hash) -> StoredLayer:
    if not path.stem.isdecimal():
        raise AutoencoderBroken(f"{path}: the name must be the layer's number, like 0{path.suffix}")
    config_path = path.parent / CONFIG
    place = explicit_place(
        config_path, {name: one for name, one in config.items() if name != LAYER}, int(path.stem)
    )
    assert place is not None
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_state_dict(path)
    top_k = _top_k(path, state, config)
    if path.suffix == ".pt" and top_k is not None and config.get(NORMALIZE) is None:
        raise AutoencoderBroken(
            f"{path}: a TopK file of the reference does not tell whether inputs are layer normed. Say so in "
            f'{config_path}: "{NORMALIZE}": "layer_norm" where sparse_autoencoder\'s own loader is '
            'meant, as for v5_32k and v5_128k; "none" for what Transformer Debugger computes'
        )
    norms_inputs, factor = input_scaling(config_path, config)
    if (norms_inputs or factor != 1) and (place.site is Site.MLP_TRANSCODER or "skip.weight" in state):
        what = "a transcoder" if place.site is Site.MLP_TRANSCODER else "a dictionary with a skip"
        raise AutoencoderBroken(
            f"{config_path}: {NORMALIZE} {config[NORMALIZE]!r} of {what} is not supported: nothing says how "
            "outputs would be scaled back"
        )
    jumps = config.get("activation") == "jumprelu"
    more = [name for name in _MORE_TENSORS if name in state and (jumps or name != "threshold")]
    if jumps and "threshold" not in more:
        more.append("threshold")
    unused = ("activation", "activation_state_dict", *_STATISTICS)
    tensors = pick_tensors(path, _untied(path, state), (*_TENSORS, *more), digest, unused)
    pre_bias, encoder, latent_bias, decoder = (tensors[name] for name in _TENSORS)
    if decoder.dim() != 2:
        raise AutoencoderBroken(
            f"{path}: decoder.weight must be a matrix, not of shape {tuple(decoder.shape)}"
        )
    weights = AutoencoderLayer(
        pre_bias,
        encoder,
        latent_bias,
        decoder.T.contiguous(),
        top_k,
        norms_inputs,
        thresholds_of(path, tensors["threshold"], latent_bias.numel()) if jumps else None,
        tensors.get("output_bias"),
        tensors.get("skip.weight"),
    )
    sizes = {"n_inputs": pre_bias.numel(), "n_latents": latent_bias.numel()}
    refuse_other_sizes(config_path, config, path, sizes)
    return StoredLayer(place, path, weights if factor == 1 else scaled(weights, factor))


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


def _top_k(path: Path, state: Mapping[str, Any], config: Mapping[str, object]) -> int | None:
    """The k of TopK, else None: as the state dict says, else `config.json`; both must not differ."""
    if "activation" not in state:
        return _top_k_of_config(path, config)
    top_k = _top_k_of_state(path, state)
    jumps = config.get("activation") == "jumprelu"
    is_other = jumps or ("activation" in config and _top_k_of_config(path, config) != top_k)
    if is_other or config.get("k") not in (None, top_k):
        own = "ReLU" if top_k is None else f"top {top_k}"
        raise AutoencoderBroken(
            f"{path}: its activation is {own}, but {path.parent / CONFIG} says activation "
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
        case "relu" | "jumprelu", None:
            return None
        case "topk", int(k) if k > 0 and k is not True:
            return k
        case activation, k:
            raise AutoencoderBroken(
                f"{path.parent / CONFIG}: activation {activation!r} with k {k!r}, not relu, jumprelu, or "
                "topk with a k"
            )

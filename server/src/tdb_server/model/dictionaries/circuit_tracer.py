"""circuit-tracer (https://github.com/safety-research/circuit-tracer): `config.yaml`, `layer_<N>.safetensors`.

    latents = act(W_enc x + b_enc);  reconstruction = W_dec latents + b_dec + W_skip x

act is what `activation` says; where it is silent, JumpReLU if thresholds are stored, else ReLU. Transcoders
that read one layer and write to many (`cross_layer_transcoder`) are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml

from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import (
    pick_tensors,
    read_safetensors,
    refuse_shapes,
    refuse_unknown,
    thresholds_of,
)
from tdb_server.model.dictionaries.places import place_of_hook
from tdb_server.model.dictionaries.stored import StoredLayer
from tdb_server.model.regular_file import read_regular

if TYPE_CHECKING:
    from hashlib import _Hash

YAML_CONFIG = "config.yaml"
_MAX_YAML_BYTES = 2**16
_SETTINGS = ("model_kind", "feature_input_hook", "feature_output_hook", "activation", "k", "transcoders")
_FOR_PEOPLE = ("model_name", "scan", "scan_name", "repo_id", "revision", "subfolder")
_THRESHOLD = "activation_function.threshold"
_LAYER_FILE = re.compile(r"layer_(\d+)\.safetensors")


def load_circuit_tracer(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The transcoders of a folder, which update a digest with what is read.

    Raises:
        AutoencoderBroken: a file is damaged, or of a kind that is not supported.
    """
    path = folder / YAML_CONFIG
    config = _read_yaml(path)
    add_settings(digest, config)
    if config.get("model_kind") == "cross_layer_transcoder":
        raise AutoencoderBroken(
            f"{path}: cross-layer transcoders are not supported, only those of single layers"
        )
    refuse_unknown(path, config, (*_SETTINGS, *_FOR_PEOPLE))
    if config.get("model_kind") != "transcoder_set":
        raise AutoencoderBroken(f"{path}: model_kind {config.get('model_kind')!r} is not transcoder_set")
    if config.get("activation") not in (None, "relu", "jump_relu", "jumprelu"):
        raise AutoencoderBroken(
            f"{path}: activation {config['activation']!r} is not relu or jumprelu; topk there keeps "
            "latents that are negative, which no node is"
        )
    if config.get("k") is not None:
        raise AutoencoderBroken(f"{path}: k {config['k']!r} beside activation {config.get('activation')!r}")
    if config.get("transcoders"):
        raise AutoencoderBroken(
            f"{path}: transcoders are files elsewhere: download those, and name their folders"
        )
    hooks = config.get("feature_input_hook"), config.get("feature_output_hook")
    layers = {int(m[1]): one for one in folder.iterdir() if (m := _LAYER_FILE.fullmatch(one.name))}
    if not layers:
        raise AutoencoderBroken(f"{folder}: no layer_<N>.safetensors")
    return [
        StoredLayer(
            place_of_hook(path, *(f"blocks.{index}.{hook}" for hook in hooks)),
            layers[index],
            _weights(layers[index], digest, config.get("activation")),
        )
        for index in sorted(layers)
    ]


def _weights(path: Path, digest: _Hash, activation: object) -> AutoencoderLayer:
    state = read_safetensors(path)
    jumps = _THRESHOLD in state if activation is None else activation != "relu"
    more = [_THRESHOLD] if jumps else []
    more += ["W_skip"] if "W_skip" in state else []
    names = ("W_enc", "W_dec", "b_enc", "b_dec", *more)
    tensors = pick_tensors(path, state, names, digest)
    n_latents, n_outputs = tensors["b_enc"].numel(), tensors["b_dec"].numel()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("W_enc", "W_dec"), (n_latents, n_outputs))
    if "W_skip" in tensors:
        shapes["W_skip"] = (n_outputs, n_outputs)
    refuse_shapes(path, tensors, shapes)
    threshold = tensors.get(_THRESHOLD)
    if threshold is not None and bool((threshold < 0).any()):
        raise AutoencoderBroken(
            f"{path}: {_THRESHOLD} is negative somewhere, which would make negative latents"
        )
    return AutoencoderLayer(
        torch.zeros(n_outputs),
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        thresholds=None if threshold is None else thresholds_of(path, threshold, n_latents),
        output_bias=tensors["b_dec"],
        skip_weight=tensors.get("W_skip"),
    )


def _read_yaml(path: Path) -> Mapping[str, object]:
    content = read_regular(path, _MAX_YAML_BYTES, AutoencoderBroken)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, yaml.SafeLoader)):
            raise ValueError("aliases, with which a few bytes may stand for any number of settings")
        root = yaml.compose(content, yaml.SafeLoader)
        names = [name.value for name, _ in root.value] if isinstance(root, yaml.MappingNode) else []
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} stands twice")
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise AutoencoderBroken(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise AutoencoderBroken(f"{path}: not a mapping of settings")
    return found

"""Gemma Scope 2: `params.safetensors` and `config.json` of JumpReLU dictionaries, one layer per folder.

    latents = JumpReLU(w_enc x + b_enc)
    reconstruction = w_dec latents + b_dec + affine_skip_connection x

`config.json` names modules of transformers. A transcoder reads what the MLP's norm gives, gain included.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import flag, read_safetensors, refuse_other_sizes, refuse_unknown
from tdb_server.model.dictionaries.gemma_scope import jump_relu_weights
from tdb_server.model.dictionaries.own import CONFIG, FOR_PEOPLE
from tdb_server.model.dictionaries.places import (
    INPUT_GAIN,
    LAYER,
    SITE,
    explicit_place,
    needs_place,
    place_of_module,
    refuse_two_places,
)
from tdb_server.model.dictionaries.stored import StoredLayer
from tdb_server.model.json_file import read_json_object

if TYPE_CHECKING:
    from hashlib import _Hash

PARAMS_2 = "params.safetensors"
_SKIP = "affine_skip_connection"
_SETTINGS = ("hf_hook_point_in", "hf_hook_point_out", "width", "architecture", "affine_connection", "type")
_OF_TRAINING = ("model_name", "l0")


def load_gemma_scope_2(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The dictionary of a folder, which updates a digest with what is read.

    Raises:
        AutoencoderBroken: a file is damaged, of another kind, or does not say where it belongs.
    """
    path, weights_path = folder / CONFIG, folder / PARAMS_2
    config = read_json_object(path)
    add_settings(digest, config)
    refuse_unknown(path, config, (*_SETTINGS, *_OF_TRAINING, SITE, LAYER, INPUT_GAIN, *FOR_PEOPLE))
    if config.get("architecture") not in ("jump_relu", "jumprelu"):
        raise AutoencoderBroken(f"{path}: architecture {config.get('architecture')!r} is not jump_relu")
    if config.get("type") not in (None, "sae", "transcoder"):
        raise AutoencoderBroken(f"{path}: type {config['type']!r} is neither sae nor transcoder")
    read, written = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    explicit, inferred = explicit_place(path, config), None
    if isinstance(read, str):
        inferred = place_of_module(path, read, written if isinstance(written, str) else None)
    if explicit is not None and inferred is not None:
        refuse_two_places(path, explicit, inferred)
    place = explicit or inferred
    if place is None:
        raise needs_place(
            path, f"hf_hook_point_in {read!r}, hf_hook_point_out {written!r} is no place we know"
        )
    if config.get("type") is not None and (config["type"] == "transcoder") != (
        place.site is Site.MLP_TRANSCODER
    ):
        raise AutoencoderBroken(f"{path}: type {config['type']!r} reads {read!r} and writes {written!r}")
    skip = _SKIP if flag(path, config, "affine_connection", False) else None
    state = read_safetensors(weights_path)
    weights = jump_relu_weights(weights_path, state, ("w_enc", "w_dec"), digest, skip)
    refuse_other_sizes(path, config, weights_path, {"width": len(weights.latent_bias)})
    return [StoredLayer(place, weights_path, weights)]

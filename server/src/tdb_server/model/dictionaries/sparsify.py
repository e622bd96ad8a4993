"""sparsify (https://github.com/EleutherAI/sparsify): `cfg.json` and `sae.safetensors` of one layer.

    latents = TopK(W_enc (x - b_dec) + b_enc);  reconstruction = W_dec latents + b_dec + W_skip x

A transcoder (`transcode`) subtracts nothing from its inputs. The folder's name is the module of transformers
that it was trained on: `layers.5`, `h.5.mlp`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.digest import add_settings
from tdb_server.model.dictionaries.files import (
    flag,
    pick_tensors,
    positive_count,
    read_safetensors,
    refuse_other_sizes,
    refuse_shapes,
    refuse_unknown,
)
from tdb_server.model.dictionaries.own import FOR_PEOPLE
from tdb_server.model.dictionaries.places import (
    INPUT_GAIN,
    LAYER,
    SITE,
    explicit_place,
    needs_place,
    place_of_module,
)
from tdb_server.model.dictionaries.saelens import SAELENS_CONFIG
from tdb_server.model.dictionaries.stored import StoredLayer
from tdb_server.model.json_file import read_json_object

if TYPE_CHECKING:
    from hashlib import _Hash

SPARSIFY_WEIGHTS = "sae.safetensors"
_SETTINGS = ("activation", "k", "d_in", "num_latents", "skip_connection", "transcode")
_OF_TRAINING = ("expansion_factor", "normalize_decoder", "multi_topk", "lookup_max_order", "gram_table_hash")
_MUST_BE_FALSE = ("signed", "embed_skip", "gram_lookup")


def load_sparsify(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The dictionary of a folder, which updates a digest with what is read.

    Raises:
        AutoencoderBroken: a file is damaged, of another kind, or does not say where it belongs.
    """
    path, weights_path = folder / SAELENS_CONFIG, folder / SPARSIFY_WEIGHTS
    config = read_json_object(path)
    add_settings(digest, config)
    known = (*_SETTINGS, *_OF_TRAINING, *_MUST_BE_FALSE, SITE, LAYER, INPUT_GAIN, *FOR_PEOPLE)
    refuse_unknown(path, config, known)
    for name in _MUST_BE_FALSE:
        if flag(path, config, name, False):
            raise AutoencoderBroken(f"{path}: {name} is not supported")
    if config.get("activation", "topk") != "topk":
        raise AutoencoderBroken(f"{path}: activation {config['activation']!r} is not topk")
    top_k, transcodes = positive_count(path, "k", config.get("k")), flag(path, config, "transcode", False)
    place = explicit_place(path, config)
    if place is None:
        read = f"{folder.name}.input" if transcodes else folder.name
        place = place_of_module(path, read, folder.name)
    if place is None:
        raise needs_place(path, f"the folder's name {folder.name!r} is no module we know")
    if transcodes != (place.site is Site.MLP_TRANSCODER):
        raise AutoencoderBroken(f"{path}: transcode {transcodes} beside {place.site.value}")
    names = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"]
    names += ["W_skip"] if flag(path, config, "skip_connection", False) else []
    tensors = pick_tensors(weights_path, read_safetensors(weights_path), names, digest)
    encoder, bias = tensors["encoder.weight"], tensors["b_dec"]
    n_latents, n_inputs = tensors["encoder.bias"].numel(), bias.numel()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("encoder.weight", "W_dec"), (n_latents, n_inputs))
    if "W_skip" in tensors:
        shapes["W_skip"] = (n_inputs, n_inputs)
    refuse_shapes(weights_path, tensors, shapes)
    refuse_other_sizes(path, {"d_in": config.get("d_in")}, weights_path, {"d_in": n_inputs})
    if config.get("num_latents"):  # 0 where an expansion factor is given in its place
        refuse_other_sizes(path, config, weights_path, {"num_latents": n_latents})
    weights = AutoencoderLayer(
        torch.zeros(n_inputs) if transcodes else bias,
        encoder,
        tensors["encoder.bias"],
        tensors["W_dec"],
        top_k,
        output_bias=bias,
        skip_weight=tensors.get("W_skip"),
    )
    return [StoredLayer(place, weights_path, weights)]

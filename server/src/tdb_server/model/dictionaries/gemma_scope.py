"""Gemma Scope: `params.npz` of JumpReLU dictionaries, one layer per folder (Lieberum et al. 2024).

    latents = JumpReLU(W_enc x + b_enc);  reconstruction = W_dec latents + b_dec

The files say nothing else. Where they belong is in the name of their repository and of their folder,
`gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`, or in a `config.json` beside them. Transcoders read
before the norm's gain is applied, as both SAELens's list and circuit-tracer's have it.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.errors import AutoencoderBroken
from tdb_server.model.autoencoder import AutoencoderLayer
from tdb_server.model.dictionaries.files import (
    pick_tensors,
    refuse_compression,
    refuse_shapes,
    refuse_unknown,
    thresholds_of,
)
from tdb_server.model.dictionaries.own import CONFIG, FOR_PEOPLE
from tdb_server.model.dictionaries.places import INPUT_GAIN, LAYER, SITE, explicit_place, needs_place
from tdb_server.model.dictionaries.stored import Place, StoredLayer
from tdb_server.model.json_file import read_json_object
from tdb_server.model.regular_file import is_there, refuse_unreadable

if TYPE_CHECKING:
    from hashlib import _Hash

PARAMS = "params.npz"
_REPOSITORY = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)(?=/|$)")
_LAYER = re.compile(r"(?:^|/)layer_(\d+)(?=/|$)")
_SITES = {
    "res": Site.RESID_POST_MLP,
    "mlp": Site.RESID_DELTA_MLP,
    "att": Site.ATTN_V_OUT,
    "transcoders": Site.MLP_TRANSCODER,
}


def load_gemma_scope(folder: Path, digest: _Hash) -> list[StoredLayer]:
    """The dictionary of a folder, which updates a digest with what is read.

    Raises:
        AutoencoderBroken: the file is damaged, or does not say where it belongs.
    """
    path = folder / PARAMS
    state = read_npz(path)
    weights = jump_relu_weights(path, state, ("W_enc", "W_dec"), digest)
    return [StoredLayer(_place(folder), path, weights)]


def _place(folder: Path) -> Place:
    if is_there(folder / CONFIG):
        config = read_json_object(folder / CONFIG)
        refuse_unknown(folder / CONFIG, config, (SITE, LAYER, INPUT_GAIN, *FOR_PEOPLE))
        explicit = explicit_place(folder / CONFIG, config)
        if explicit is not None:
            return explicit
    kinds, layers = set(_REPOSITORY.findall(str(folder))), set(_LAYER.findall(str(folder)))
    if len(kinds) != 1 or len(layers) != 1:
        names_say = "say two things" if kinds and layers else "do not say it either"
        raise needs_place(
            folder / PARAMS, f"does not say where it belongs, and the names of its folders {names_say}"
        )
    return Place(_SITES[kinds.pop()], int(layers.pop()))


def jump_relu_weights(
    path: Path, state: dict[str, Tensor], matrices: tuple[str, str], digest: _Hash, skip: str | None = None
) -> AutoencoderLayer:
    """The weights of Gemma Scope's files: nothing is subtracted from inputs.

    Args:
        path: the file, for people.
        state: its tensors.
        matrices: what W_enc [s, n] and W_dec [n, s] are called there.
        digest: updated with them.
        skip: what the skip [s, s] is called there, from inputs to outputs; None where there is none.

    Raises:
        AutoencoderBroken: a tensor is missing, does not fit the others, or there are more.
    """
    names = (*matrices, "b_enc", "threshold", "b_dec", *([skip] if skip else []))
    tensors = pick_tensors(path, state, names, digest)
    w_enc, w_dec = (tensors[name] for name in matrices)
    if w_enc.dim() != 2 or w_dec.dim() != 2:
        raise AutoencoderBroken(
            f"{path}: {matrices[0]} {list(w_enc.shape)}, {matrices[1]} {list(w_dec.shape)}: no matrices"
        )
    (n_inputs, n_latents), n_outputs = w_enc.shape, w_dec.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        matrices[1]: (n_latents, n_outputs),
        "b_enc": (n_latents,),
        "threshold": (n_latents,),
        "b_dec": (n_outputs,),
    }
    if skip:
        shapes[skip] = (n_inputs, n_outputs)
    refuse_shapes(path, tensors, shapes)
    return AutoencoderLayer(
        torch.zeros(n_inputs),
        w_enc.T.contiguous(),
        tensors["b_enc"],
        w_dec,
        thresholds=thresholds_of(path, tensors["threshold"], n_latents),
        output_bias=tensors["b_dec"],
        skip_weight=tensors[skip].T.contiguous() if skip else None,
    )


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of a numpy archive, whose headers are looked at before room is made for them.

    Raises:
        AutoencoderBroken: it is missing, damaged, packed, or holds objects.
    """
    refuse_unreadable(path, kind=AutoencoderBroken)
    refuse_compression(path)
    found: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read_header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, in_columns, dtype = read_header(file)
                    n_bytes = int(np.prod([dtype.itemsize, *shape], dtype=object))
                    if dtype.hasobject or n_bytes != member.file_size - file.tell():
                        raise ValueError(f"{member.filename} says {shape} of {dtype}")
                    array = np.frombuffer(bytearray(file.read(n_bytes)), dtype)
                    array = array.reshape(shape, order="F" if in_columns else "C")
                    found[member.filename.removesuffix(".npy")] = torch.from_numpy(
                        np.ascontiguousarray(array)
                    )
    except Exception as error:  # damaged files raise all sorts of errors
        raise AutoencoderBroken(f"{path}: not a sound archive of arrays: {error}") from error
    return found

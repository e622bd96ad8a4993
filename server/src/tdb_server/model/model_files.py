"""The files of a Hugging Face model folder: what they are called, and which of them hold the weights.

Only safetensors are read: they hold numbers and nothing else. Pickled weights could run code when opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tdb_server.errors import ModelBroken, ModelNotFound, UnsupportedModel
from tdb_server.model.json_file import read_json_object
from tdb_server.model.regular_file import MAX_INDEX_BYTES, is_there, refuse_unreadable

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
WARNINGS_FILE = "warnings.txt"
"""Beside converted files: what should be said whenever they are used, a line each."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class WeightFiles:
    """Which files of a folder hold its weights.

    Attributes:
        paths: the safetensors files to read, ordered by name.
        assigned: the index's file for each tensor; empty where no index is used.
        ignored: names of files that look like weights too, and are not read.
    """

    paths: tuple[Path, ...]
    assigned: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def weight_files(folder: Path) -> WeightFiles:
    """Finds a folder's weights as transformers does: the single file before the index.

    Raises:
        ModelBroken: there are none, only pickled ones, or the index names a file that is missing.
    """
    every = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")}
    if SINGLE_FILE in every:
        refuse_unreadable(folder / SINGLE_FILE)
        index = {INDEX_FILE} if (folder / INDEX_FILE).is_file() else set()
        return WeightFiles((folder / SINGLE_FILE,), ignored=tuple(sorted(every - {SINGLE_FILE} | index)))
    if is_there(folder / INDEX_FILE):
        assigned = _read_index(folder / INDEX_FILE)
        named = sorted(set(assigned.values()))
        paths = tuple(folder / name for name in named)
        for path in paths:
            if not is_there(path):
                raise ModelBroken(f"{path}: named in {INDEX_FILE} but missing")
            refuse_unreadable(path)
        return WeightFiles(paths, assigned, tuple(sorted(every.difference(named))))
    if len(every) == 1:
        refuse_unreadable(only := folder / every.pop())
        return WeightFiles((only,))
    if every:
        raise ModelBroken(f"{folder}: several safetensors files but no {INDEX_FILE} to join them")
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelBroken(
            f"{folder / pickled[0]}: pickled weights can run code when they are read, so they never are. "
            "Where you trust the file, convert it once: transformers.AutoModelForCausalLM"
            ".from_pretrained(folder).save_pretrained(new_folder) writes safetensors"
        )
    raise ModelBroken(f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}, so there are no weights")


def read_config(folder: Path) -> dict[str, object]:
    """The `config.json` of a model folder.

    Raises:
        ModelNotFound: there is no such folder.
        ModelBroken: the file is missing or is not a JSON object.
        UnsupportedModel: there is an adapter, which would change the weights.
    """
    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such folder")
    adapters = [name for name in ADAPTERS if (folder / name).exists()]
    if adapters:
        raise UnsupportedModel(
            f"{folder / adapters[0]}: adapters are not supported. Merge it into its model once: "
            "peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(new_folder)"
        )
    path = folder / CONFIG_FILE
    if not is_there(path):
        raise ModelBroken(f"{folder}: no {CONFIG_FILE}, so this is no Hugging Face model folder")
    return read_json_object(path, ModelBroken)


def weights_digest(folder: Path) -> str:
    """What tells models apart: SHA-256 over `config.json` and the safetensors files, in hexadecimal.

    `load_decoder` takes the same on its way.

    Raises:
        ModelNotFound, ModelBroken: as `read_config` and `weight_files`.
    """
    read_config(folder)
    digest = hashlib.sha256()
    for path in (folder / CONFIG_FILE, *weight_files(folder).paths):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _read_index(index: Path) -> dict[str, str]:
    """The file of each tensor."""
    assigned = read_json_object(index, ModelBroken, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(assigned, dict) or not all(isinstance(name, str) for name in assigned.values()):
        raise ModelBroken(f"{index}: not an index of safetensors files: weight_map must name files")
    if not assigned:
        raise ModelBroken(f"{index}: names no tensor")
    outside = [name for name in assigned.values() if Path(name).name != name]
    if outside:
        raise ModelBroken(f"{index}: names {outside[0]!r}, which is no file of this folder")
    return assigned

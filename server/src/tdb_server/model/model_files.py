"""The files of a Hugging Face model folder: what they are called, and which of them hold the weights.

Only safetensors are read: they hold numbers and nothing else. Pickled weights could run code when opened.
"""

from __future__ import annotations

import json
from pathlib import Path

from tdb_server.errors import ModelBroken, ModelNotFound

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
WARNINGS_FILE = "warnings.txt"
"""Beside converted files: what should be said whenever they are used, a line each."""
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def safetensors_paths(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: those of the index, else the single file.

    Raises:
        ModelBroken: there are none, only pickled ones, or the index names a file that is missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        return [_existing(folder / name) for name in _files_of_index(index)]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if others:
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
    """
    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such folder")
    path = folder / CONFIG_FILE
    if not path.exists():
        raise ModelBroken(f"{folder}: no {CONFIG_FILE}, so this is no Hugging Face model folder")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, object]:
    """The object in one of a model folder's JSON files.

    Raises:
        ModelBroken: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelBroken(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelBroken(f"{path}: not a JSON object")
    return found


def _files_of_index(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelBroken(f"{index}: not an index of safetensors files: {error}") from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ModelBroken(f"{path}: named in {INDEX_FILE} but missing")
    return path

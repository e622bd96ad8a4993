"""Where converted models and tokenizers are kept: folders under the user's cache.

What is converted is written into a temporary folder first, which is then renamed, so that a folder with the
right name is always complete. The name covers what was converted and the code that did it: what an earlier
version made is not used again. What nobody has used for some time is removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tdb_server.errors import ModelError
from tdb_server.model.model_files import WARNINGS_FILE

_log = logging.getLogger(__name__)

CONVERTERS = (
    *sorted(Path(__file__).parent.glob("gguf*.py")),
    Path(__file__).with_name("tokenizer_conversion.py"),
    Path(__file__).with_name("weight_names.py"),
)
"""The code that decides what a GGUF file and a folder's tokenizer become."""

PACKAGES = ("gguf", "tokenizers", "transformers")
"""The packages that decide it with us."""

UNUSED_SECONDS = 30 * 24 * 3600.0
UNFINISHED_SECONDS = 24 * 3600.0
"""After how long without use a conversion, and what is left of one that broke off, is removed."""

_UNFINISHED = ".unfinished-"
_FINISHED = re.compile(r".+-[0-9a-f]{16}")


def cache_folder() -> Path:
    """Where conversions are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "transformer-debugger"


def converters_digest() -> bytes:
    """Tells versions of the conversion apart: SHA-256 of its code and of the packages' versions."""
    digest = hashlib.sha256()
    for path in CONVERTERS:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\n".encode())
    return digest.digest()


def kept_folder(name: str, content: bytes, build: Callable[[Path], None]) -> Path:
    """The folder of a conversion, built where it is missing.

    Warnings that were kept with it are logged, this time as on the first.

    Args:
        name: for people who look into the cache.
        content: a digest of what is converted.
        build: fills an empty folder.

    Raises:
        ModelError: the cache cannot be written.
    """
    digest = hashlib.sha256(content + converters_digest()).hexdigest()
    root = cache_folder()
    final = root / f"{name}-{digest[:16]}"
    if final.is_dir():
        with suppress(OSError):  # a cache that cannot be written can be read
            os.utime(final)
    else:
        _build(root, final, build)
    _remove_unused(root)
    warnings = final / WARNINGS_FILE
    for line in warnings.read_text(encoding="utf-8").splitlines() if warnings.is_file() else ():
        _log.warning("%s", line)
    return final


def _build(root: Path, final: Path, build: Callable[[Path], None]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=root, prefix=_UNFINISHED))
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


def _remove_unused(root: Path) -> None:
    """Removes conversions that nobody has used for long, such as those of earlier versions."""
    now = time.time()
    with suppress(OSError):
        for folder in list(root.iterdir()):
            is_unfinished = folder.name.startswith(_UNFINISHED)
            if not is_unfinished and not _FINISHED.fullmatch(folder.name):
                continue
            if now - folder.stat().st_mtime > (UNFINISHED_SECONDS if is_unfinished else UNUSED_SECONDS):
                removed = folder if is_unfinished else folder.rename(root / f"{_UNFINISHED}{folder.name}")
                shutil.rmtree(removed, ignore_errors=True)

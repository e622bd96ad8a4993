"""Where converted models and tokenizers are kept: folders under the user's cache.

What is converted is written into a temporary folder first, brought to the disk, and then renamed, so that a
folder with the right name was complete once. The name covers what was converted and the code that did it:
what an earlier version made is not used again. What nobody has used for some time is removed.

Disks lose and change things all the same. So each folder has a file `proof.json` with the sizes and digests
of the others. Before each use all are compared with it, the weights by their size: whoever loads them takes
their digest on the way. What is not as it was is made again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tdb_server.errors import ModelBroken, ModelError
from tdb_server.model.json_file import read_json_object
from tdb_server.model.model_files import SINGLE_FILE, WARNINGS_FILE, weights_digest

_log = logging.getLogger(__name__)

CONVERTERS = (
    *sorted(Path(__file__).parent.glob("gguf*.py")),
    Path(__file__).with_name("chat_template.py"),
    Path(__file__).with_name("tokenizer_conversion.py"),
    *sorted((Path(__file__).parent / "families").glob("*.py")),
)
"""The code that decides what a GGUF file and a folder's tokenizer become."""

PACKAGES = ("gguf", "mistral-common", "protobuf", "sentencepiece", "tiktoken", "tokenizers", "transformers")
"""The packages that decide it with us."""

UNUSED_SECONDS = 30 * 24 * 3600.0
UNFINISHED_SECONDS = 24 * 3600.0
"""After how long without use a conversion, and what is left of one that broke off, is removed."""

PROOF_FILE = "proof.json"
"""Beside converted files: `{"files": {NAME: {"bytes": N, "sha256": HEX}}, "weights": HEX}`."""

LOCK_SECONDS = 600.0
"""How long to wait for another process that makes the same; then both do, and the first wins."""

_UNFINISHED, _LOCK = ".unfinished-", ".lock-"
_FINISHED = re.compile(r".+-[0-9a-f]{16}")


def cache_folder() -> Path:
    """Where conversions are kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "transformer-debugger"


def converters_digest() -> bytes:
    """Tells versions of the conversion apart: SHA-256 of its code and of the packages' versions."""
    digest = hashlib.sha256()
    for path in CONVERTERS:
        digest.update(bytes.fromhex(_sha256(path)))
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            digest.update(f"{package} {version(package)}\n".encode())
    return digest.digest()


@dataclass(frozen=True)
class Conversion:
    """A folder that was made of something else.

    Attributes:
        folder: its place.
        weights_digest: what `weights_digest` was when it was made; None where it holds no weights.
    """

    folder: Path
    weights_digest: str | None


def kept_conversion(
    name: str, content: bytes, build: Callable[[Path], None], *, is_in_doubt: bool = False
) -> Conversion:
    """A conversion from the cache, made where it is missing or damaged.

    Warnings that were kept with it are logged, this time as on the first.

    Args:
        name: for people who look into the cache.
        content: a digest of what is converted.
        build: fills an empty folder.
        is_in_doubt: whether to read the weights, too, to see whether they are what was written.

    Raises:
        ModelError: the cache cannot be written.
    """
    digest = hashlib.sha256(content + converters_digest()).hexdigest()
    root = cache_folder()
    final = root / f"{name}-{digest[:16]}"
    found = _sound(final, is_in_doubt=is_in_doubt)
    if found is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _turn(root / f"{_LOCK}{final.name}"):
                found = _sound(final, is_in_doubt=is_in_doubt) or _build(root, final, build)
        except OSError as error:
            raise ModelError(f"{final}: the cache cannot be written ({error}); set XDG_CACHE_HOME") from error
    with suppress(OSError):  # a cache that cannot be written can be read
        os.utime(final)
    _remove_unused(root)
    _warn_of_strangers(root)
    warnings = final / WARNINGS_FILE
    for line in warnings.read_text(encoding="utf-8").splitlines() if warnings.is_file() else ():
        _log.warning("%s", line)
    return found


def _build(root: Path, final: Path, build: Callable[[Path], None]) -> Conversion:
    """Makes a conversion beside its place, and puts it there when all of it is on the disk.

    Raises:
        OSError: the cache cannot be written.
    """
    temporary = Path(tempfile.mkdtemp(dir=root, prefix=_UNFINISHED))
    aside = temporary.with_name(f"{temporary.name}-damaged")
    try:
        build(temporary)
        _write_proof(temporary)
        for path in (*temporary.iterdir(), temporary):
            _bring_to_disk(path)
        with suppress(FileNotFoundError):
            final.rename(aside)  # its files stay as they are for those who have opened them
        try:
            temporary.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise  # else another process, which did not wait, has finished the same work first
        _bring_to_disk(root)
    finally:
        for folder in (temporary, aside):
            shutil.rmtree(folder, ignore_errors=True)
    made = _sound(final)
    if made is None:
        raise OSError(errno.EIO, "what was written is not what is read")
    return made


def _write_proof(folder: Path) -> None:
    files: dict[str, dict[str, object]] = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size}
        if path.name != SINGLE_FILE:
            files[path.name]["sha256"] = _sha256(path)
    weights = weights_digest(folder) if SINGLE_FILE in files else None
    (folder / PROOF_FILE).write_text(json.dumps({"files": files, "weights": weights}), encoding="utf-8")


def _sound(folder: Path, *, is_in_doubt: bool = False) -> Conversion | None:
    """A conversion, after a look at its files; None where there is none, or one that is damaged."""
    if not folder.is_dir():
        return None
    try:
        proof: Any = read_json_object(folder / PROOF_FILE, ModelBroken)
        weights: str | None = proof["weights"]
        faults = [fault for name, entry in proof["files"].items() if (fault := _fault(folder / name, entry))]
        if is_in_doubt and weights is not None and not faults and weights_digest(folder) != weights:
            faults = [f"{SINGLE_FILE} is not what was written"]
    except (ModelError, OSError, LookupError, TypeError, AttributeError) as error:
        faults = [f"{PROOF_FILE} or what it proves cannot be read: {error}"]
    if faults:
        _log.warning("%s is damaged and will be made again: %s", folder, faults[0])
    return None if faults else Conversion(folder, weights)


def _fault(path: Path, entry: dict[str, Any]) -> str | None:
    """What is wrong with a file, by its entry in the proof."""
    n_bytes = path.stat().st_size
    if n_bytes != entry["bytes"]:
        return f"{path.name} has {n_bytes} bytes, not {entry['bytes']}"
    is_other = path.name != SINGLE_FILE and _sha256(path) != entry["sha256"]
    return f"{path.name} is not what was written" if is_other else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bring_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Holds a lock, which ends with the process. Where a file system has none, the same is done twice."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _warn_of_strangers(root: Path) -> None:
    """Says when everybody may replace what is kept, and with it the proof of what it was."""
    for folder in (root, root.parent):
        with suppress(OSError):
            mode = folder.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                _log.warning("%s can be written by everybody, and so can the models kept there", folder)


def _remove_unused(root: Path) -> None:
    """Removes conversions that nobody has used for long, such as those of earlier versions."""
    now = time.time()
    with suppress(OSError):
        for folder in list(root.iterdir()):
            is_unfinished = folder.name.startswith((_UNFINISHED, _LOCK))
            is_ours = is_unfinished or _FINISHED.fullmatch(folder.name)
            seconds = UNFINISHED_SECONDS if is_unfinished else UNUSED_SECONDS
            if is_ours and now - folder.stat().st_mtime > seconds:
                removed = folder if is_unfinished else folder.rename(root / f"{_UNFINISHED}{folder.name}")
                if removed.is_dir():
                    shutil.rmtree(removed, ignore_errors=True)
                else:
                    removed.unlink()

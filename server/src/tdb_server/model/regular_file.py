"""Files are looked at before they are opened: they must be regular, and not larger than their kind ever is.

To open a FIFO waits for ever, a device never ends, and what is parsed takes many times its size in memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tdb_server.errors import ModelBroken, TdbError

MAX_JSON_BYTES = 16 * 2**20
"""Of a configuration. Those of real models have a few thousand."""
MAX_INDEX_BYTES = 64 * 2**20
"""Of an index of safetensors files. The largest models, with 90,000 tensors, have 9 million."""
MAX_TOKENIZER_BYTES = 128 * 2**20
"""Of a file of a tokenizer. Those with a vocabulary of 260,000 tokens have 33 million."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_there(path: Path) -> bool:
    """Whether there is anything of this name, though it may be a link to nowhere."""
    return path.exists() or path.is_symlink()


def refuse_unreadable(path: Path, max_bytes: int | None = None, kind: type[TdbError] = ModelBroken) -> None:
    """Refuses what is no regular file, or a link to one, and what is too large.

    Raises:
        TdbError: of the kind that was asked for.
    """
    try:
        found = path.stat()
    except OSError as error:
        fault = f"cannot be read ({error.strerror})"
        if path.is_symlink():
            fault = f"a link to {path.readlink()}, which cannot be reached ({error.strerror})"
        raise kind(f"{path}: {fault}") from error
    _refuse_others(path, found, kind)
    if max_bytes is not None and found.st_size > max_bytes:
        raise kind(f"{path}: {found.st_size} bytes long; files of this kind may have {max_bytes}")


def read_regular(path: Path, max_bytes: int, kind: type[TdbError] = ModelBroken) -> bytes:
    """The content of a regular file of at most so many bytes, even where it changes meanwhile.

    Raises:
        TdbError: of the kind that was asked for, as `refuse_unreadable`.
    """
    refuse_unreadable(path, max_bytes, kind)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _refuse_others(path, os.fstat(descriptor), kind)
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > max_bytes:
        raise kind(f"{path}: more than {max_bytes} bytes long, all that a file of this kind may have")
    return content


def _refuse_others(path: Path, found: os.stat_result, kind: type[TdbError]) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise kind(f"{path}: {what}, not a regular file")

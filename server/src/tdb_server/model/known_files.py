"""What files held when they were last read: one that is certainly the same is not read again.

A file is known by its path, inode, size and times, to the nanosecond. The time of an inode's last change
(ctime) cannot be set, so a file that was written, replaced or given its old time again is another one. The
number of its device does not count: it may change when a machine starts.

What is known lies beside the conversions, and goes with them when nobody uses it. It is proved as they are:
what is damaged is not believed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tdb_server.errors import ModelBroken
from tdb_server.model.conversions import cache_folder
from tdb_server.model.progress import Progress
from tdb_server.model.regular_file import read_regular

SETTLED_SECONDS = 2.0
"""How long a file must have been left alone to be known: its times advance in steps, of 2 s at the most."""
_PART_BYTES = 1 << 20
_KNOWN_BYTES = 1 << 10


def file_facts(paths: Sequence[Path]) -> list[tuple[str, int, int, int, int]]:
    """What changes with the content of files: path, inode, size, and the times of their last changes.

    They are opened for it: whoever may not read them finds out, and file systems of a network ask anew.

    Raises:
        OSError: one cannot be opened.
    """
    found = []
    for path in paths:
        with path.open("rb") as file:
            one = os.fstat(file.fileno())
        found.append((str(path.absolute()), one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns))
    return found


def content_digest(name: str, paths: Sequence[Path], progress: Progress, *, is_in_doubt: bool) -> bytes:
    """SHA-256 of what some files hold, which are read where they are not known.

    Args:
        name: for people who look into the cache.
        paths: regular files.
        progress: told how much is read.
        is_in_doubt: whether to read what is known, too.

    Raises:
        OSError: a file cannot be read.
    """
    now = time.time()
    facts = file_facts(paths)
    key = hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()
    known = cache_folder() / f"{name}-known-{key[:16]}"
    with suppress(ModelBroken, ValueError):
        content, proof = read_regular(known, _KNOWN_BYTES).decode("ascii").split()
        if not is_in_doubt and proof == _proof(key, content):
            with suppress(OSError):  # a cache that cannot be written can be read
                os.utime(known)
            return bytes.fromhex(content)
    content = _read(paths, sum(size for _, _, size, _, _ in facts), progress).hex()
    is_settled = all(max(changed, altered) < (now - SETTLED_SECONDS) * 1e9 for *_, changed, altered in facts)
    if is_settled and file_facts(paths) == facts:
        with suppress(OSError):
            known.parent.mkdir(parents=True, exist_ok=True)
            known.write_text(f"{content} {_proof(key, content)}\n", encoding="ascii")
    return bytes.fromhex(content)


def _proof(key: str, content: str) -> str:
    return hashlib.sha256(f"{key} {content}".encode()).hexdigest()


def _read(paths: Sequence[Path], n_bytes: int, progress: Progress) -> bytes:
    """The digest of the files' digests."""
    digest, buffer, n_read = hashlib.sha256(), memoryview(bytearray(_PART_BYTES)), 0
    for path in paths:
        of_file = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                of_file.update(buffer[:n])
                n_read += n
                progress("reading GGUF", min(1.0, n_read / n_bytes))
        digest.update(of_file.digest())
    return digest.digest()

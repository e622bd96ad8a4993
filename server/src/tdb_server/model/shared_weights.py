"""Weights that several processes of one machine have in common: one fills them in, all read them.

They lie in a file without a name (`memfd_create`), which the front makes and its workers inherit; it is gone
with the last of them, however they end. A worker that fills it holds a lock, which the system takes from a
process that dies. Whoever comes later, a second worker or the successor of a dead one, finds the file filled:
it reads no weights from disk, and takes no memory for them.

    0     32       96             4096
    | key | digest | nothing      | tensors, in the order in which they were asked for
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tdb_server.model.progress import Progress, no_progress

_HEADER_BYTES = 4096
_ALIGNMENT = 64
_KEY_BYTES, _DIGEST_BYTES = 32, 64
_WAIT_SECONDS = 0.2


class SharedWeights:
    """Room for tensors in shared memory, handed out one after the other.

    Attributes:
        is_filled: the tensors hold their values, and cannot be written.
        digest: of the files they come from, 64 characters; for whoever fills them in to set.
    """

    def __init__(self, memory: mmap.mmap, *, is_filled: bool, digest: str = "") -> None:
        self.is_filled = is_filled
        self.digest = digest
        self._memory = memory
        self._offset = _HEADER_BYTES

    def next_tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The next tensor; every process asks for the same ones in the same order."""
        count = math.prod(shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be written is meant
            found = torch.frombuffer(self._memory, dtype=dtype, count=count, offset=self._offset)
        self._offset += -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return found.view(shape)


def room_for(n_elements: int, n_tensors: int, dtype: torch.dtype) -> int:
    """Bytes that are enough for tensors of so many elements in all."""
    return n_elements * dtype.itemsize + n_tensors * _ALIGNMENT


@contextmanager
def shared_weights(
    file: int, key: bytes, n_bytes: int, progress: Progress = no_progress
) -> Iterator[SharedWeights | None]:
    """Opens the file for reading when it is filled, else for filling; then it counts as filled at the end.

    Args:
        file: the descriptor of the file without a name.
        key: tells weights apart, 32 bytes.
        n_bytes: room that all tensors take.
        progress: told again and again while a sibling fills the file.

    Yields:
        The room; None when the file holds other weights, because those on disk have changed.
    """
    _wait_for_siblings(file, progress)
    try:
        held = os.pread(file, len(key), 0)
        if held == key:
            digest = os.pread(file, _DIGEST_BYTES, _KEY_BYTES).decode("ascii")
            yield SharedWeights(mmap.mmap(file, 0, prot=mmap.PROT_READ), is_filled=True, digest=digest)
        elif any(held):
            yield None
        else:
            os.ftruncate(file, _HEADER_BYTES + n_bytes)
            room = SharedWeights(mmap.mmap(file, 0), is_filled=False)
            yield room
            os.pwrite(file, room.digest.encode("ascii"), _KEY_BYTES)
            os.pwrite(file, key, 0)  # last: it says that all is there
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)


def _wait_for_siblings(file: int, progress: Progress) -> None:
    """Takes the lock. It asks again and again, so that whoever watches sees a process that is alive."""
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            progress("waiting for weights", 0.0)
            time.sleep(_WAIT_SECONDS)

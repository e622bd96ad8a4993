"""One safetensors file, read once from beginning to end: each part is digested and copied to where it goes.

A part is read into the same small buffer again and again. A mapping of the file would hold as much memory
once more as the weights that are made of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from tdb_server.errors import ModelBroken, UnsupportedModel

if TYPE_CHECKING:
    from hashlib import _Hash

PART_BYTES = 1 << 22
"""What is read at a time, or one row where that is longer."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """Where a stored tensor goes.

    Attributes:
        place: in the order of the stored tensor: a view where the decoder keeps another.
        converted: from some entries of the first axis, as they are stored, to the numbers that go there.
    """

    place: Tensor
    converted: Callable[[Tensor], Tensor]


def read_file(
    path: Path, targets: Mapping[str, Target], digest: _Hash, on_read: Callable[[int], object]
) -> None:
    """Reads a file.

    Args:
        path: a safetensors file, which the library has found sound: without gaps between tensors.
        targets: by the names in the file; each tensor is converted to its place's dtype and device.
        digest: updated with every byte.
        on_read: told the bytes of each part.

    Raises:
        ModelBroken: the file cannot be read, or a tensor holds values that are not finite.
        UnsupportedModel: a tensor that has a place holds something other than floating point numbers.
    """
    try:
        with path.open("rb", buffering=0) as file:
            header = _read_header(file, digest)
            on_read(file.tell())
            for name, entry in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
                what, target = f"{path}: {name}", targets.get(name)
                for part in _read_tensor(file, what, entry, target):
                    digest.update(part)
                    on_read(len(part))
    except OSError as error:
        raise ModelBroken(f"{path}: cannot be read: {error}") from error


def _read_header(file: IO[bytes], digest: _Hash) -> dict[str, Any]:
    """By name: each tensor's dtype, shape and place in the file."""
    start = file.read(8)
    content = file.read(int.from_bytes(start, "little"))
    digest.update(start + content)
    header: dict[str, Any] = json.loads(content)
    header.pop("__metadata__", None)
    return header


def _read_tensor(
    file: IO[bytes], what: str, entry: Mapping[str, Any], target: Target | None
) -> Iterator[memoryview]:
    """Reads a tensor, a few rows at a time, and yields their bytes when they are where they go."""
    start, end = entry["data_offsets"]
    if target is None:
        yield from _parts(file, what, end - start, 1)
        return
    dtype = _DTYPES.get(entry["dtype"])
    place = target.place if target.place.dim() else target.place[None]
    if dtype is None:
        raise UnsupportedModel(f"{what} is stored as {entry['dtype']}, not as floating point")
    n_done = 0
    for part in _parts(file, what, end - start, dtype.itemsize * math.prod(place.shape[1:])):
        rows = torch.frombuffer(part, dtype=dtype).view(-1, *place.shape[1:])
        place[n_done : n_done + len(rows)].copy_(target.converted(rows))
        n_done += len(rows)
        yield part
    if not _is_finite(place):
        raise ModelBroken(f"{what} holds values that are not finite as {place.dtype}")


def _parts(file: IO[bytes], what: str, n_bytes: int, row_bytes: int) -> Iterator[memoryview]:
    """The next so many bytes of a file, a few rows at a time: each part takes the place of the one before."""
    part_bytes = max(1, PART_BYTES // max(1, row_bytes)) * row_bytes
    buffer = memoryview(bytearray(min(part_bytes, n_bytes)))
    while n_bytes > 0:
        part = buffer[:n_bytes]
        n_read = 0
        while n_read < len(part):
            n = file.readinto(part[n_read:])  # type: ignore[attr-defined]  # unbuffered files have it
            if not n:
                raise ModelBroken(f"{what} cannot be read: the file ends before it")
            n_read += n
        n_bytes -= len(part)
        yield part


def _is_finite(x: Tensor) -> bool:
    # Cheap first: a sum may overflow, but with an infinity or a NaN in it it is never finite.
    return bool(x.sum().isfinite()) or bool(torch.isfinite(x).all())

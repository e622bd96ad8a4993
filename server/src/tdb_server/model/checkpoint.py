"""The weight files of a model folder, as one table of tensors.

A tensor may be stored more than once, under one name in two files or under two names, as long as all copies
are equal. Otherwise nobody can tell which one is meant, and the folder is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.families.weight_names import WeightNames
from tdb_server.model.model_files import INDEX_FILE, WeightFiles, weight_files
from tdb_server.model.progress import Progress

if TYPE_CHECKING:
    from hashlib import _Hash

_log = logging.getLogger(__name__)

WRAPPERS = frozenset(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""What torch.compile, data parallel training and checkpointing put into the names of a model's tensors."""

_COMPARED_ELEMENTS = 1 << 22
"""Numbers that are compared at a time, so that a comparison needs no second copy of a large tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file that is open.

    Attributes:
        path: the file.
        name: as the file has it.
        handle: safetensors' own.
    """

    path: Path
    name: str
    handle: Any

    def __str__(self) -> str:
        return f"{self.name} in {self.path.name}"

    @property
    def shape(self) -> list[int]:
        """As stored."""
        return list(self.handle.get_slice(self.name).get_shape())

    def equals(self, other: StoredTensor) -> bool:
        """Whether both are the same bit for bit; reads a few rows of each at a time."""
        one, two = self.handle.get_slice(self.name), other.handle.get_slice(other.name)
        shape = self.shape
        if shape != other.shape or one.get_dtype() != two.get_dtype():
            return False
        if not shape:
            return _same_bytes(self.handle.get_tensor(self.name), other.handle.get_tensor(other.name))
        n_rows = max(1, _COMPARED_ELEMENTS // max(1, math.prod(shape[1:])))
        starts = range(0, shape[0], n_rows)
        return all(_same_bytes(one[at : at + n_rows], two[at : at + n_rows]) for at in starts)


@dataclass(frozen=True)
class Target:
    """Where a stored tensor goes.

    Attributes:
        place: of the shape that the configuration demands.
        arranged: from the stored tensor to the numbers that go there.
    """

    place: Tensor
    arranged: Callable[[Tensor], Tensor]


class Checkpoint:
    """Opens a folder's weight files and hands out their tensors by name, with or without the model's prefix.

    Args:
        folder: a Hugging Face model folder.
        names: what may stand before the names of tensors, and what else they may be called.

    Attributes:
        unread: names of the tensors that nobody has checked, without prefix.

    Raises:
        ModelBroken: a file is missing or damaged, or a tensor is stored twice with different values.
    """

    def __init__(self, folder: Path, names: WeightNames) -> None:
        self.folder = folder
        self._names = names
        self._open_files = ExitStack()
        self._stored: dict[str, StoredTensor] = {}
        self._handles: dict[Path, Any] = {}
        files = weight_files(folder)
        try:
            for path in files.paths:
                self._add(path)
        except BaseException:
            self._open_files.close()
            raise
        self._tell_of_contradictions(files)
        self.unread = set(self._stored)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    @property
    def n_tensors(self) -> int:
        """How many tensors there are."""
        return len(self._stored)

    @property
    def n_elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(one.shape) for one in self._stored.values())

    def stored(self, name: str) -> StoredTensor | None:
        """Where a tensor is stored, by its name without prefix."""
        return self._stored.get(name)

    def check(self, name: str, shape: tuple[int, ...], *, is_transposed: bool) -> None:
        """Looks whether a tensor is there as it should be, without reading it.

        Args:
            name: the tensor, without prefix.
            shape: what the configuration demands.
            is_transposed: whether it is stored as [inputs, outputs].

        Raises:
            ModelBroken: it is missing or has another shape.
        """
        stored = self._find(name)
        expected = list(reversed(shape)) if is_transposed else list(shape)
        if stored.shape != expected:
            raise ModelBroken(
                f"{stored.path}: {stored.name} has shape {stored.shape}; config.json demands {expected}"
            )
        self.unread.discard(name)

    def read(self, targets: Mapping[str, Target], digest: _Hash, progress: Progress) -> None:
        """Reads all files once from beginning to end, and copies tensors to where they go.

        Args:
            targets: by name without prefix; each is converted to its place's dtype and device.
            digest: updated with every byte of the files.
            progress: told how far it is.

        Raises:
            ModelBroken: a file cannot be read, or a tensor holds values that are not finite.
            UnsupportedModel: a tensor holds something other than floating point numbers.
        """
        progress("loading weights", 0.0)
        n_done, n_elements = 0, max(1, self.n_elements)
        for path, handle in self._handles.items():
            digest.update(_header(path))
            for full_name in handle.offset_keys():  # the format allows no gaps between tensors
                try:
                    source: Tensor = handle.get_tensor(full_name)
                except (SafetensorError, OSError) as error:
                    raise ModelBroken(f"{path}: {full_name} cannot be read: {error}") from error
                digest.update(source.flatten().view(torch.uint8).numpy().data)
                name = self._short(full_name)
                if name in targets and self._stored[name].path == path:
                    _copy(f"{path}: {full_name}", source, targets[name])
                n_done += source.numel()
                progress("loading weights", min(1.0, n_done / n_elements))

    def _find(self, name: str) -> StoredTensor:
        found = self._stored.get(name)
        if found is None:
            files = ", ".join(sorted({one.path.name for one in self._stored.values()})) or "empty"
            raise ModelBroken(
                f"{self.folder} ({files}): no tensor {name}, nor {self._names.prefixes[-1]}{name}"
            )
        return found

    def _add(self, path: Path) -> None:
        try:
            handle = self._open_files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ModelBroken(f"{path}: not a readable safetensors file: {error}") from error
        self._handles[path] = handle
        for full_name in handle.keys():  # noqa: SIM118 - the handle is no dict
            stored = StoredTensor(path, full_name, handle)
            known = self._stored.setdefault(self._short(full_name), stored)
            if known is not stored and not known.equals(stored):
                raise ModelBroken(f"{self.folder}: {known} and {stored} are one tensor with different values")

    def _short(self, full_name: str) -> str:
        name = _unwrapped(full_name)
        prefix = next((one for one in self._names.prefixes if name.startswith(one)), "")
        short = name.removeprefix(prefix)
        return self._names.other_names.get(short, short)

    def _tell_of_contradictions(self, files: WeightFiles) -> None:
        """Says in the log what the folder says twice, and how that was settled: as transformers does."""
        read = ", ".join(path.name for path in files.paths)
        if files.ignored:
            _log.warning("%s: %s is read, not %s", self.folder, read, ", ".join(files.ignored))
        wrapped = [one.name for one in self._stored.values() if _unwrapped(one.name) != one.name]
        if wrapped:
            _log.warning("%s: %s is read as %s", self.folder, wrapped[0], _unwrapped(wrapped[0]))
        places: dict[str, set[str]] = {}
        for path, handle in self._handles.items():
            for name in handle.keys():  # noqa: SIM118
                places.setdefault(name, set()).add(path.name)
        strays = [name for name in places if name not in files.assigned] if files.assigned else []
        strays += [name for name, file in files.assigned.items() if file not in places.get(name, ())]
        if strays:
            _log.warning(
                "%s: %s assigns %s to %s, and it is in %s (%d tensors in all are elsewhere than assigned); "
                "the files say what is in them",
                self.folder,
                INDEX_FILE,
                strays[0],
                files.assigned.get(strays[0], "no file"),
                " and ".join(sorted(places.get(strays[0], ()))) or "no file",
                len(strays),
            )


def _header(path: Path) -> bytes:
    """All that stands before the tensors; safetensors has found it sound."""
    with path.open("rb") as file:
        start = file.read(8)
        return start + file.read(int.from_bytes(start, "little"))


def _copy(what: str, source: Tensor, target: Target) -> None:
    if not source.is_floating_point() or source.element_size() < 2:
        raise UnsupportedModel(f"{what} is stored as {source.dtype}, not as floating point")
    target.place.copy_(target.arranged(source))
    if not _is_finite(target.place):
        raise ModelBroken(f"{what} holds values that are not finite as {target.place.dtype}")


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))


def _is_finite(x: Tensor) -> bool:
    # Cheap first: a sum may overflow, but with an infinity or a NaN in it it is never finite.
    return bool(x.sum().isfinite()) or bool(torch.isfinite(x).all())

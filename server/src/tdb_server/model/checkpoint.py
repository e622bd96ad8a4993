"""The weight files of a model folder, as one table of tensors."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.model_files import safetensors_paths


class Checkpoint:
    """Opens a folder's weight files and hands out their tensors by name, with or without the model's prefix.

    Args:
        folder: a Hugging Face model folder.
        prefix: what may stand before the names of tensors.

    Raises:
        ModelBroken: a file is missing or damaged.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self.unread: set[str] = set()
        self._prefix = prefix
        self._open_files = ExitStack()
        self._places: dict[str, tuple[Path, str, Any]] = {}  # name without prefix -> file, name, handle
        try:
            for path in safetensors_paths(folder):
                self._add(path)
        except BaseException:
            self._open_files.close()
            raise
        self.unread = set(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.close()

    @property
    def n_tensors(self) -> int:
        """How many tensors there are."""
        return len(self._places)

    @property
    def n_elements(self) -> int:
        """Numbers in all tensors together."""
        shapes = (handle.get_slice(name).get_shape() for _, name, handle in self._places.values())
        return sum(math.prod(shape) for shape in shapes)

    def copy_into(self, target: Tensor, name: str, *, transposed: bool = False) -> None:
        """Fills `target` with a tensor, converted to its dtype and device.

        Args:
            target: what the decoder will use, of the shape that the configuration demands.
            name: the tensor, without prefix.
            transposed: whether it is stored as [inputs, outputs].

        Raises:
            ModelBroken: it is missing, has another shape or holds values that are not finite.
            UnsupportedModel: it holds something other than floating point numbers.
        """
        path, full_name, handle = self._place(name)
        expected = list(reversed(target.shape)) if transposed else list(target.shape)
        shape = list(handle.get_slice(full_name).get_shape())
        if shape != expected:
            raise ModelBroken(f"{path}: {full_name} has shape {shape}; config.json demands {expected}")
        try:
            source: Tensor = handle.get_tensor(full_name)
        except (SafetensorError, OSError) as error:
            raise ModelBroken(f"{path}: {full_name} cannot be read: {error}") from error
        if not source.is_floating_point() or source.element_size() < 2:
            raise UnsupportedModel(f"{path}: {full_name} is stored as {source.dtype}, not as floating point")
        target.copy_(source.T if transposed else source)
        if not _is_finite(target):
            raise ModelBroken(f"{path}: {full_name} holds values that are not finite as {target.dtype}")
        self.unread.discard(name)

    def _place(self, name: str) -> tuple[Path, str, Any]:
        try:
            return self._places[name]
        except KeyError:
            files = ", ".join(sorted({path.name for path, _, _ in self._places.values()}))
            message = f"{self.folder} ({files}): no tensor {name}, nor {self._prefix}{name}"
            raise ModelBroken(message) from None

    def _add(self, path: Path) -> None:
        try:
            handle = self._open_files.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ModelBroken(f"{path}: not a readable safetensors file: {error}") from error
        for full_name in handle.keys():  # noqa: SIM118 - the handle is no dict
            self._places[full_name.removeprefix(self._prefix)] = (path, full_name, handle)


def _is_finite(x: Tensor) -> bool:
    # Cheap first: a sum may overflow, but with an infinity or a NaN in it it is never finite.
    return bool(x.sum().isfinite()) or bool(torch.isfinite(x).all())

"""Numbers brought to the device and back: as few copies as there are waits for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
A = TypeVar("A", Tensor, Array)
"""On the device, or on the host."""


def upload(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """Arrays of int64 or float64, in one copy."""
    if not arrays:
        return []
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(one)) for one in arrays]
    packed = np.concatenate([np.ascontiguousarray(one).reshape(-1).view(np.int64) for one in arrays])
    parts = torch.split(torch.from_numpy(packed).to(device), [one.size for one in arrays])
    return [
        (part if one.dtype == np.int64 else part.view(torch.float64)).view(one.shape)
        for part, one in zip(parts, arrays, strict=True)
    ]


def download(tensors: Sequence[Tensor]) -> list[Array]:
    """Tensors of any shapes and types as arrays, in one copy; half precision as float32."""
    if all(one.device.type == "cpu" for one in tensors):
        return [_array(one.detach()) for one in tensors]
    on_host = {index: _array(one.detach()) for index, one in enumerate(tensors) if one.device.type == "cpu"}
    by_type: dict[torch.dtype, list[int]] = {}
    for index, one in enumerate(tensors):
        if index not in on_host:
            by_type.setdefault(one.dtype, []).append(index)
    joined = [torch.cat([tensors[index].detach().flatten() for index in own]) for own in by_type.values()]
    together = joined[0] if len(joined) == 1 else torch.cat([one.double() for one in joined])
    copied = _array(together.to("cpu"))
    order = [index for own in by_type.values() for index in own]
    split = np.split(copied, np.cumsum([tensors[index].numel() for index in order])[:-1])
    for index, part in zip(order, split, strict=True):
        found = part.astype(_numpy_type(tensors[index].dtype), copy=False)
        on_host[index] = found.reshape(tensors[index].shape)
    return [on_host[index] for index in range(len(tensors))]


def _array(x: Tensor) -> Array:
    is_half = x.is_floating_point() and x.dtype.itemsize < 4
    array: Array = (x.float() if is_half else x).contiguous().numpy()
    return array


def _numpy_type(dtype: torch.dtype) -> type[np.generic]:
    if dtype.is_floating_point:
        return np.float64 if dtype == torch.float64 else np.float32
    return np.int64

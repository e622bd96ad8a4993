"""Numbers brought to the host: as few copies as there are waits for a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray


def as_array(x: Tensor) -> FloatArray:
    """A contiguous numpy array; bfloat16, which numpy lacks, as float32."""
    x = x.detach().to("cpu")
    array: FloatArray = (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy()
    return array


def as_arrays(tensors: Sequence[Tensor]) -> list[FloatArray]:
    """All of them, of any shapes and of one dtype, in one copy."""
    together = as_array(torch.cat([one.flatten() for one in tensors]))
    ends = np.cumsum([one.numel() for one in tensors])[:-1]
    parts = np.split(together, ends)
    return [part.reshape(one.shape) for part, one in zip(parts, tensors, strict=True)]


def as_indices(x: Tensor) -> IntArray:
    """Integers as a numpy array."""
    array: IntArray = x.cpu().numpy()
    return array

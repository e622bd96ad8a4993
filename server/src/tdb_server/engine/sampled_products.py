"""Some entries of a product of matrices, without the others."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 65_536
"""Entries computed at once where rows are gathered: bounds the copies, which are [_CHUNK, d]."""


def sampled_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries of left @ right.T: matrices [m, d] and [n, d], and where the entries stand [e], to [e].

    Args:
        rows: in ascending order.
    """
    if left.device.type == "cpu" and left.dtype in (torch.float32, torch.float64):
        starts = F.pad(rows.bincount(minlength=len(left)).cumsum(0), (1, 0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sparse matrices are in beta, it says
            wanted = torch.sparse_csr_tensor(
                starts, columns, left.new_zeros(len(columns)), (len(left), len(right))
            )
        found: Tensor = torch.sparse.sampled_addmm(wanted, left, right.T, beta=0).values()
        return found
    parts = [
        (left[some_rows] * right[some_columns]).sum(dim=1)
        for some_rows, some_columns in zip(
            torch.split(rows, _CHUNK), torch.split(columns, _CHUNK), strict=True
        )
    ]
    return torch.cat(parts) if parts else left.new_zeros(0)

"""Some entries of a product of matrices, without the others."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled_products(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries of left @ right.T on a CPU: of matrices [m, d] and [n, d], those at rows and columns [e].

    Args:
        rows: in ascending order.
    """
    if left.dtype not in (torch.float32, torch.float64):  # for which there is no kernel
        return (left @ right.T)[rows, columns]
    starts = F.pad(rows.bincount(minlength=len(left)).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse matrices are in beta, it says
        wanted = torch.sparse_csr_tensor(
            starts, columns, left.new_zeros(len(columns)), (len(left), len(right))
        )
    found: Tensor = torch.sparse.sampled_addmm(wanted, left, right.T, beta=0).values()
    return found

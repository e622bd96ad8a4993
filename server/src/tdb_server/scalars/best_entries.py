"""The k best entries of tensors, without sorting them.

A row's k best lie in the k blocks of neighbours with the best entries of their own. One cheap pass finds
every block's best; only the chosen blocks are looked at again. With blocks of about sqrt(n / k) entries both
steps rank equally few.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray
from tdb_server.scalars.host_arrays import as_indices, ranked_arrays

_SMALL = 4096
"""Rows of fewer entries are ranked as they are."""


def top_k_per_row(
    scores: Tensor, k: int, largest: bool = True, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best of each row [m, n]: values and indices [m, k], best first.

    Args:
        scores: with at least k columns.
        block: entries of a block; chosen where it is left out.
    """
    n_rows, n_columns = scores.shape
    if block is None:
        block = n_columns if n_columns <= _SMALL else 2 ** round(math.log2(max(n_columns / k, 1)) / 2)
    n_blocks = n_columns // block
    if n_blocks <= 4 * k:
        found = scores.topk(k, dim=1, largest=largest)
        return found.values, found.indices
    whole = scores[:, : n_blocks * block].view(n_rows, n_blocks, block)
    best = whole.amax(dim=2) if largest else whole.amin(dim=2)
    chosen = best.topk(k, dim=1, largest=largest, sorted=False).indices  # [m, k]
    candidates = whole.gather(1, chosen[:, :, None].expand(-1, -1, block)).flatten(1)
    indices = (chosen[:, :, None] * block + torch.arange(block, device=scores.device)).flatten(1)
    if n_blocks * block < n_columns:
        rest = torch.arange(n_blocks * block, n_columns, device=scores.device).expand(n_rows, -1)
        candidates = torch.cat((candidates, scores[:, n_blocks * block :]), dim=1)
        indices = torch.cat((indices, rest), dim=1)
    values, position = candidates.topk(k, dim=1, largest=largest)
    return values, indices.gather(1, position)


def top_k_entries(values: Tensor, k: int, largest: bool, with_ties: bool) -> tuple[FloatArray, IntArray]:
    """The k best entries of a tensor, best first: values and flat indices.

    Args:
        with_ties: whether all entries that equal the k-th come too. Zeros do not: they are never chosen. Else
            which of them come is what a CPU makes of it, on any device.
    """
    row = values.reshape(1, -1)
    if not with_ties:
        return ranked_arrays(*(one[0] for one in top_k_per_row(row.cpu(), min(k, row.shape[1]), largest)))
    found, flat = ranked_arrays(*(one[0] for one in top_k_per_row(row, min(k + 1, row.shape[1]), largest)))
    if len(found) <= k:
        return found, flat
    last = found[k - 1]
    if last != found[k] or last == 0:
        return found[:k], flat[:k]
    equal = as_indices((row[0] == float(last)).nonzero()[:, 0])
    is_better = found != last
    return (
        np.concatenate((found[is_better], np.full(len(equal), last))),
        np.concatenate((flat[is_better], equal)),
    )

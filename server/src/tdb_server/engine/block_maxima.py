"""The k best entries of rows, without sorting them.

A row's k best lie in the k blocks of neighbours with the best entries of their own. One cheap pass finds
every block's best; only the chosen blocks are looked at again. With about sqrt(n / k) entries to a block,
there are as many blocks as entries of the k chosen ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALL = 4096
"""Rows of fewer entries are ranked as they are."""


def block_size(n_entries: int, k: int) -> int:
    """Entries of a block where the k best of n are wanted; 1 where blocks do not pay."""
    if n_entries <= _SMALL:
        return 1
    size: int = 2 ** round(math.log2(max(n_entries / k, 1)) / 2)
    return size if n_entries // size > 4 * k else 1


def top_k_per_row(
    scores: Tensor, k: int, largest: bool = True, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best of each row [m, n]: values and indices [m, k], best first.

    On a CPU without sorting them: a row's k best lie in the k blocks of neighbours with the best bests.

    Args:
        scores: with at least k columns.
        block: entries of a block; chosen where it is left out.
    """
    n_rows, n_columns = scores.shape
    if block is None:
        block = block_size(n_columns, k) if scores.device.type == "cpu" else 1
    n_blocks = n_columns // block
    if block == 1 or n_blocks <= k:
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

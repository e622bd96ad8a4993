"""The k best entries of several tensors together, without sorting them and without joining them.

The k best entries lie in blocks of neighbours whose own best is at least the k-th best of all blocks' bests.
So each tensor is looked through once, for its blocks' bests; then the few chosen blocks are looked at again,
whichever tensors they are of. With blocks of about sqrt(n / k) entries both steps rank equally few.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray
from tdb_server.scalars.best_entries import block_size
from tdb_server.scalars.host_arrays import as_array, as_indices


@dataclass(frozen=True)
class EntryBlocks:
    """A tensor's entries, in blocks of neighbours.

    Attributes:
        bests: the best entry of each block [n_blocks].
        entries: from the numbers of m blocks to their entries: values [e] and where they stand [e].
        nodes: from where entries stand [e] to node indices [e, n_axes].
    """

    bests: Tensor
    entries: Callable[[IntArray], tuple[Tensor, IntArray]]
    nodes: Callable[[IntArray], IntArray]


def bests_of_blocks(entries: Tensor, k: int, largest: bool) -> tuple[Tensor, int]:
    """The best entry of each block of a row of entries [n], of which k are wanted, and a block's size."""
    block = block_size(len(entries), k)
    if block == 1:
        return entries, block
    n_whole = len(entries) // block * block
    parts = [entries[:n_whole].view(-1, block)]
    if n_whole < len(entries):
        parts.append(entries[None, n_whole:])
    bests = [part.amax(dim=1) if largest else part.amin(dim=1) for part in parts]
    return bests[0] if len(bests) == 1 else torch.cat(bests), block


def best_entries(
    parts: Sequence[EntryBlocks], k: int, largest: bool
) -> tuple[FloatArray, IntArray, IntArray]:
    """The k best entries of all parts, and all that equals the last of them, in no order; never a zero.

    A block with an entry that is not a number is left out.

    Returns:
        Values [m], which part each is of [m], and node indices [m, n_axes].
    """
    sign = 1 if largest else -1
    chosen, least = _chosen_blocks(torch.cat([one.bests for one in parts]) * sign, k)
    starts = np.cumsum([0, *(len(one.bests) for one in parts)])
    of_parts = np.split(chosen, chosen.searchsorted(starts[1:-1]))
    found = [
        (number, *part.entries(of_part - start))
        for number, (part, of_part, start) in enumerate(zip(parts, of_parts, starts, strict=False))
        if len(of_part)
    ]
    if not found:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 1), np.int64)
    values = as_array(torch.cat([one for _, one, _ in found]))
    if len(values) > k:
        least = max(least, float(np.partition(values * sign, -k)[-k]))
    is_best = (values * sign >= least) & (values != 0)
    ends = np.cumsum([len(flat) for _, _, flat in found])[:-1]
    best_of_parts = [
        (number, parts[number].nodes(flat[is_best_here]))
        for (number, _, flat), is_best_here in zip(found, np.split(is_best, ends), strict=True)
    ]
    which = np.repeat([number for number, _ in best_of_parts], [len(nodes) for _, nodes in best_of_parts])
    return values[is_best], which, np.concatenate([nodes for _, nodes in best_of_parts])


def _chosen_blocks(bests: Tensor, k: int) -> tuple[IntArray, float]:
    """Which blocks may have one of the k best entries [m], and what these entries are at least.

    Where that is zero, whatever is below does not count, and zeros are never chosen.
    """
    if len(bests) < k:
        least = -math.inf
    else:
        least = float(bests.masked_fill(bests.isnan(), -math.inf).topk(k, sorted=False).values.amin())
    is_chosen = bests > 0 if least == 0 else bests >= least
    return as_indices(is_chosen.nonzero()[:, 0]), least

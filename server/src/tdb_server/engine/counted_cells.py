"""Which activations of a batch of pieces count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CountedCells:
    """All but those in which the first token of a piece, or padding, has a part.

    Attributes:
        which: of each piece [B, cells].
        is_all_but_first: whether that is all but the first cell, which is faster to look at.
    """

    which: Tensor
    is_all_but_first: bool

    def highest(self, activations: Tensor) -> Tensor:
        """Each node's highest in each piece: [B, cells, n] to [B, n]."""
        return self._counted(activations, -torch.inf).amax(dim=1)

    def lowest(self, activations: Tensor) -> Tensor:
        """Each node's lowest in each piece: [B, cells, n] to [B, n]."""
        return self._counted(activations, torch.inf).amin(dim=1)

    def _counted(self, activations: Tensor, other: float) -> Tensor:
        if self.is_all_but_first:
            return activations[:, 1:]
        return activations.masked_fill(~self.which[:, :, None], other)


def counted_cells(lengths: Tensor, n_tokens: int, *, is_of_pairs: bool) -> CountedCells:
    """Of a batch with pieces of these lengths [B], padded to a number of tokens."""
    token = torch.arange(n_tokens, device=lengths.device)
    counts = (token > 0) & (token < lengths[:, None])  # [B, T]
    if not is_of_pairs:
        return CountedCells(counts, bool((lengths == n_tokens).all()))
    query, key = torch.tril_indices(n_tokens, n_tokens, device=lengths.device)
    return CountedCells(counts[:, query] & (key > 0), is_all_but_first=False)

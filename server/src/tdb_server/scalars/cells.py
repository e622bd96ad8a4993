"""Ablations as cells of a tensor: which entries are set, in the forward pass or in the gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdb_server.domain.place import Place
from tdb_server.domain.requests import ActivationIndex

PAIR_PLACES = frozenset({Place.ATTN_QK_LOGITS, Place.ATTN_QK_PROBS})
"""Places indexed (query, key, head) by clients and laid out [B, H, query, key] inside."""
HEAD_PLACES = frozenset({Place.ATTN_Q, Place.ATTN_K, Place.ATTN_V, Place.ATTN_V_OUT})
"""Places indexed (token, head, channel) by clients and laid out [B, H, token, channel] inside."""


@dataclass(frozen=True)
class Cells:
    """Entries of a batch tensor that are set to one value."""

    index: tuple[Any, ...]
    value: float

    def set(self, x: Tensor) -> None:
        """Writes the value into `x`, in place."""
        x[self.index] = self.value


def batch_cells(index: ActivationIndex, value: float, row: int, n_tokens: int, mask: Tensor) -> Cells:
    """The cells of a batch tensor that an ablation of row `row` sets.

    Args:
        index: in the client's order of axes; None stands for all of an axis.
        n_tokens: the row's own length; padding is never touched.
        mask: [T, T], True where attention may not look; only attended cells of pair places are set.
    """
    first, *rest = (slice(None) if one is None else one for one in index.tensor_indices)
    if index.place in PAIR_PLACES:
        query, key, head = index.tensor_indices
        allowed = ~mask[:n_tokens, :n_tokens]
        queries, keys = allowed.nonzero(as_tuple=True)
        chosen = torch.ones_like(queries, dtype=torch.bool)
        if query is not None:
            chosen &= queries == query
        if key is not None:
            chosen &= keys == key
        heads = slice(None) if head is None else head
        return Cells((row, heads, queries[chosen], keys[chosen]), value)
    tokens = slice(0, n_tokens) if first == slice(None) else first
    if index.place in HEAD_PLACES:
        return Cells((row, rest[0], tokens, *rest[1:]), value)
    return Cells((row, tokens, *rest), value)


def ablate(x: Tensor, cells: Sequence[Cells]) -> Tensor:
    """`x` with cells set; nothing flows back through them."""
    if not cells:
        return x
    x = x.clone()
    for cell in cells:
        cell.set(x)
    return x


class _OverrideGradient(torch.autograd.Function):
    """The identity, whose gradient has some cells set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cells: Sequence[Cells]) -> Tensor:
        ctx.cells = cells
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ablate(gradients[0], ctx.cells), None


def override_gradient(x: Tensor, cells: Sequence[Cells]) -> Tensor:
    """`x` as it is; on the way back the gradient's cells are set."""
    if not cells:
        return x
    apply: Callable[[Tensor, Sequence[Cells]], Tensor] = _OverrideGradient.apply
    return apply(x, cells)

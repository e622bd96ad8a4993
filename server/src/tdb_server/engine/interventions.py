"""Interventions: cells of a tensor that are set, in the forward pass or in the gradient.

An ablation, a patched latent and a gradient held back are the same thing: a hook point, some cells of one
row, and the value they get. They are applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec, ValueType

PAIR_HOOK_POINTS = frozenset({HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS})
"""Indexed (query, key, head) by clients and laid out [B, H, query, key] inside."""
HEAD_HOOK_POINTS = frozenset({HookPoint.ATTN_Q, HookPoint.ATTN_K, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT})
"""Indexed (token, head, channel) by clients and laid out [B, H, token, channel] inside."""


Cell = tuple[int | None, int | None]
"""A token and a component, such as a head; None for all of them."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Some cells of one row that are set: to a value, to a baseline's, or to a function of what they are.

    Attributes:
        row: of the batch.
        n_tokens: of the row; padding is never touched.
        ablation: the hook point, the cells in the client's order of axes (None for all of an axis), the pass,
            and what is done to them.
        kept: cells among them that stay as they are.
    """

    row: int
    n_tokens: int
    ablation: AblationSpec
    kept: frozenset[Cell] = frozenset()

    @property
    def hook_point(self) -> HookPoint:
        """Where."""
        return self.ablation.index.hook_point

    @property
    def is_forward(self) -> bool:
        """Whether values are set, rather than gradients."""
        return self.ablation.index.pass_type is PassType.FORWARD

    @property
    def is_of_latents(self) -> bool:
        """Whether its cells are latents."""
        return self.hook_point.node_type.is_latent

    @property
    def is_of_contribution(self) -> bool:
        """Whether only what comes from one attended-to token is set."""
        return self.ablation.attended_to_token is not None

    @property
    def needs_baseline(self) -> bool:
        """Whether it sets cells to what they are in baseline prompts."""
        return self.ablation.value_type is ValueType.BASELINE

    @property
    def replaces_whole_tensor(self) -> bool:
        """Whether its row's tensor is set as a whole, whatever it was."""
        ablation = self.ablation
        is_whole = not self.kept and all(one is None for one in ablation.index.tensor_indices)
        own_counts = ablation.value_type in (ValueType.SCALE, ValueType.ADD)
        return self.is_forward and is_whole and not own_counts

    @property
    def alone(self) -> Intervention:
        """The same in a batch of its row alone."""
        return replace(self, row=0)

    def set_in(self, batch: Tensor, hidden_cells: Tensor | None, baseline: Tensor | None = None) -> None:
        """Sets the cells of a batch's tensor [B, ...], in place.

        Args:
            hidden_cells: [T, T], True where attention may not look; of pairs, only others are set.
            baseline: what the row's cells [...] are in its baseline prompts, where it needs that.
        """
        values, ablation = batch[self.row], self.ablation
        if self.hook_point in PAIR_HOOK_POINTS:
            assert hidden_cells is not None
            self._set_pairs(values, hidden_cells, baseline)
            return
        cells = self._cells(ablation.index.tensor_indices)
        if ablation.value_type is ValueType.NUMBER and not self.kept:
            values[cells] = ablation.value
            return
        altered = self._altered(values, cells, baseline)
        values[cells] = torch.where(self._are_kept(values), values[cells], altered) if self.kept else altered

    def _set_pairs(self, values: Tensor, hidden_cells: Tensor, baseline: Tensor | None) -> None:
        query, key, head = self.ablation.index.tensor_indices
        tokens, keys = _along(query, self.n_tokens), _along(key, self.n_tokens)
        pairs, hidden = (_along(head, None), tokens, keys), hidden_cells[tokens, keys]
        if self.ablation.value_type is ValueType.NUMBER:
            values[pairs].masked_fill_(~hidden, self.ablation.value)
        else:
            values[pairs] = torch.where(hidden, values[pairs], self._altered(values, pairs, baseline))

    def _cells(self, indices: Sequence[int | None]) -> tuple[slice, ...]:
        """Cells of a row as they are laid out in a pass; the last axis may be left out."""
        tokens = _along(indices[0], self.n_tokens)
        if self.hook_point in HEAD_HOOK_POINTS:
            return _along(indices[1], None), tokens, _along(indices[2], None)
        return tokens, _along(indices[1], None)

    def _are_kept(self, values: Tensor) -> Tensor:
        """Which cells of a row [H, T, e] or [T, n] stay, up to its length: [H, t, 1] or [t, n].

        Thousands may be named, so that they are set all at once.
        """
        is_of_heads = self.hook_point in HEAD_HOOK_POINTS
        are_kept = np.zeros((self.n_tokens, values.shape[0 if is_of_heads else 1]), dtype=bool)
        for token, component in self.kept:
            are_kept[_along(token, None), _along(component, None)] = True
        found = torch.from_numpy(are_kept).to(values.device)
        return found.T[..., None] if is_of_heads else found

    def _altered(self, values: Tensor, cells: tuple[slice, ...], baseline: Tensor | None) -> Tensor:
        """What the cells are set to."""
        ablation = self.ablation
        match ablation.value_type:
            case ValueType.BASELINE:
                assert baseline is not None
                return baseline[cells].to(values.dtype)
            case ValueType.SCALE:
                return values[cells] * ablation.value
            case ValueType.ADD if ablation.direction is not None:
                direction = torch.tensor(ablation.direction, dtype=values.dtype, device=values.device)
                return values[cells] + direction * ablation.value
            case ValueType.ADD:
                return values[cells] + ablation.value
            case _:
                return torch.full_like(values[cells], ablation.value)


def _along(index: int | None, length: int | None) -> slice:
    """One index of an axis, or all up to a length."""
    return slice(0, length) if index is None else slice(index, index + 1)


Baseline = Callable[[int], Tensor]
"""From a row of the batch to what its cells [...] are in its baseline prompts."""


def set_values(
    x: Tensor,
    interventions: Sequence[Intervention],
    hidden_cells: Tensor | None = None,
    baseline: Baseline | None = None,
) -> Tensor:
    """`x` [B, ...] with cells set; nothing flows back through those set to a number or a baseline."""
    if not interventions:
        return x
    x = x.clone()
    for one in interventions:
        one.set_in(x, hidden_cells, baseline(one.row) if baseline and one.needs_baseline else None)
    return x


class _SetGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *settings: Any) -> Tensor:
        ctx.settings = settings
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return set_values(gradients[0], *ctx.settings), None, None


def set_gradients(
    x: Tensor, interventions: Sequence[Intervention], hidden_cells: Tensor | None = None
) -> Tensor:
    """`x` [B, ...] as it is; on the way back the gradient's cells are set."""
    if not interventions:
        return x
    apply: Callable[..., Tensor] = _SetGradients.apply
    return apply(x, interventions, hidden_cells)

"""Interventions: cells of a tensor that are set, in the forward pass or in the gradient.

An ablation, a patched latent and a gradient held back are the same thing: a hook point, some cells of one
row, and the value they get. They are applied here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import AblationSpec

PAIR_HOOK_POINTS = frozenset({HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS})
"""Indexed (query, key, head) by clients and laid out [B, H, query, key] inside."""
HEAD_HOOK_POINTS = frozenset({HookPoint.ATTN_Q, HookPoint.ATTN_K, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT})
"""Indexed (token, head, channel) by clients and laid out [B, H, token, channel] inside."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """Some cells of one row that are set to a value.

    Attributes:
        row: of the batch.
        n_tokens: of the row; padding is never touched.
        ablation: the hook point, the cells in the client's order of axes (None for all of an axis), the pass,
            and the value.
    """

    row: int
    n_tokens: int
    ablation: AblationSpec

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
    def alone(self) -> Intervention:
        """The same in a batch of its row alone."""
        return replace(self, row=0)

    def set_in(self, batch: Tensor, hidden_cells: Tensor | None) -> None:
        """Sets the cells of a batch's tensor [B, ...], in place.

        Args:
            hidden_cells: [T, T], True where attention may not look; of pairs, only others are set.
        """
        own, indices = batch[self.row], self.ablation.index.tensor_indices
        slices = [slice(None) if one is None else slice(one, one + 1) for one in indices]
        tokens = slice(0, self.n_tokens) if indices[0] is None else slices[0]
        if self.hook_point in PAIR_HOOK_POINTS:
            assert hidden_cells is not None
            keys = slice(0, self.n_tokens) if indices[1] is None else slices[1]
            own[slices[2], tokens, keys].masked_fill_(~hidden_cells[tokens, keys], self.ablation.value)
        elif self.hook_point in HEAD_HOOK_POINTS:
            own[slices[1], tokens, slices[2]] = self.ablation.value
        else:
            own[tokens, slices[1]] = self.ablation.value


def set_values(
    x: Tensor, interventions: Sequence[Intervention], hidden_cells: Tensor | None = None
) -> Tensor:
    """`x` [B, ...] with cells set; nothing flows back through them."""
    if not interventions:
        return x
    x = x.clone()
    for one in interventions:
        one.set_in(x, hidden_cells)
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

"""The plain model's gradients under each backward rule: what a rule holds constant is detached."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import BackwardRule
from torch import Tensor
from transformers import PreTrainedModel

from tests.property.plain_model import Edit, PlainModel, Seen, Spot

_LEAVING = {HookPoint.ATTN_Q: 4, HookPoint.ATTN_K: 4, HookPoint.ATTN_V: 2}
"""What GIM divides the gradients by that leave attention."""


class DetachedModel(PlainModel):
    """A decoder whose gradients, by autograd, are those of a backward rule."""

    def __init__(
        self, reference: PreTrainedModel, rule: BackwardRule, *, pattern_gradients: bool = False
    ) -> None:
        super().__init__(reference)
        self.is_relp, self.is_gim = rule is BackwardRule.RELP, rule is BackwardRule.GIM
        self.detaches_scales = rule is not BackwardRule.GRADIENT
        self.detaches_patterns = self.is_relp and not pattern_gradients

    def gradients(
        self, token_ids: tuple[int, ...], objective: Callable[[Seen], Tensor]
    ) -> tuple[Seen, dict[Spot, Tensor]]:
        """The forward pass, and gradients of one number made of it [T, ...]: zeros where it sees nothing."""
        watched: dict[Spot, Tensor] = {}
        edits = {spot: self._edit(spot, watched) for spot in self.run(token_ids)}
        seen = self.run(token_ids, edits)
        asked = {spot: x for spot, x in watched.items() if x.requires_grad}
        found = torch.autograd.grad(objective(seen), list(asked.values()), allow_unused=True)
        gradients = {spot: torch.zeros_like(x[0]) for spot, x in watched.items()}
        gradients |= {
            spot: gradient[0] for spot, gradient in zip(asked, found, strict=True) if gradient is not None
        }
        return seen, gradients

    def root_mean_square(self, x: Tensor) -> Tensor:
        found = super().root_mean_square(x)
        return found.detach() if self.detaches_scales else found

    def activate(self, x: Tensor) -> Tensor:
        if not self.is_relp:
            return super().activate(x)
        return x * torch.where(x == 0, 0.5, super().activate(x) / x).detach()

    def _edit(self, spot: Spot, watched: dict[Spot, Tensor]) -> Edit:
        place, layer = spot

        def edit(x: Tensor) -> Tensor:
            if place is HookPoint.RESID_POST_EMB:
                x = x.clone().requires_grad_()
            if place is HookPoint.MLP_POST_ACT and self.is_relp and self.is_gated:
                x = (x + x.detach()) / 2
            if place is HookPoint.ATTN_QK_PROBS and self.detaches_patterns:
                x = x.detach().requires_grad_()
            if place is HookPoint.ATTN_QK_PROBS and self.is_gim:
                cooler = 2 * (watched[HookPoint.ATTN_QK_LOGITS, layer] / 2).softmax(dim=2)
                x = x.detach() + cooler - cooler.detach()
            watched[spot] = x
            if self.is_gim and place in _LEAVING:
                return x.detach() + (x - x.detach()) / _LEAVING[place]
            return x

        return edit

"""Slopes of objectives, measured by altering the plain model's forward pass and running it again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.property.plain_edits import with_edit
from tests.property.plain_model import Edits, PlainModel, Seen, Spot

STEP = 1e-5
Objective = Callable[[Seen], Tensor]
"""What a forward pass leaves behind to one number per copy [c]."""


def slopes_of_scaling(
    model: PlainModel, token_ids: tuple[int, ...], objective: Objective, spot: Spot, edits: Edits
) -> Tensor:
    """For every entry of a place, the objective's slope when that entry alone is scaled by (1 ± STEP)."""
    base = model.run(token_ids, edits)[spot][0]
    return slopes_of_adding(model, token_ids, objective, spot, edits, _diagonal(base)).view(base.shape)


def slopes_of_scaling_tokens(
    model: PlainModel, token_ids: tuple[int, ...], objective: Objective, spot: Spot, edits: Edits
) -> Tensor:
    """The same for all channels of a token at once: [T]."""
    base = model.run(token_ids, edits)[spot][0]
    whole_tokens = torch.eye(len(base), dtype=base.dtype)[:, :, None] * base
    return slopes_of_adding(model, token_ids, objective, spot, edits, whole_tokens)


def slopes_of_adding(
    model: PlainModel,
    token_ids: tuple[int, ...],
    objective: Objective,
    spot: Spot,
    edits: Edits,
    directions: Tensor,
) -> Tensor:
    """The objective's slope along each of n directions [n, ...] at a place, after its edits: [n]."""
    above, below = (
        objective(model.run(token_ids, with_edit(edits, spot, lambda x, step=step: x + step * directions)))
        for step in (STEP, -STEP)
    )
    return (above - below).expand(len(directions)) / (2 * STEP)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of a function of [c, ...] to [c] at one point [...]."""
    every_entry = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    above, below = (function(x + step * every_entry) for step in (STEP, -STEP))
    return ((above - below) / (2 * STEP)).view(x.shape)


def _diagonal(x: Tensor) -> Tensor:
    """[...] to [n, ...], of whose n tensors each keeps one entry of `x`."""
    return torch.diag(x.flatten()).view(-1, *x.shape)


def assert_same(measured: Tensor, computed: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to within a small part of the largest number there is."""
    scale = max(float(measured.abs().max()), float(computed.abs().max()))
    assert measured.shape == computed.shape
    worst = float((measured - computed).abs().max())
    assert worst <= tolerance * scale + 1e-9, f"{worst} of {scale} off"

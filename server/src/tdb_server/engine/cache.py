"""What the two passes leave: cache, graph and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.interventions import HEAD_HOOK_POINTS, PAIR_HOOK_POINTS
from tdb_server.engine.streams import Stream
from tdb_server.model.hooks import HookSite
from tdb_server.model.precision import wide


@dataclass(frozen=True)
class Cache:
    """What is kept of the forward pass, without its graph.

    Attributes:
        values: by hook point, of each layer in order [B, ...]; of hook points that no layer has, one.
        final_residual: the last residual stream [B, T, d].
        final_normed: what the unembedding reads [B, T, d].
        loss_logits: of the token of each row's loss, after interventions and their cap [B, V].
        read: by dictionary's site and layer, what it reads [B, T, s].
    """

    values: dict[HookPoint, list[Tensor]]
    final_residual: Tensor
    final_normed: Tensor
    loss_logits: Tensor
    read: dict[tuple[Site, int], Tensor]


@dataclass(frozen=True)
class Graph:
    """What the backward pass starts from, and where it is asked for gradients.

    Attributes:
        sites: tensors whose gradients are wanted.
        streams: the residual streams that objectives start from.
        site_outputs: dictionaries' sites behind the splice, whose gradients are wanted.
        final_normed: what the unembedding reads [B, T, d].
        logits_before: the logits at the losses' tokens [B, 1, V] before gradients are set there.
        logits: those behind the point where gradients are set; differences of logits are of these [B, V].
        capped: the model's own, of which probabilities are computed; the same where they have no cap [B, V].
    """

    sites: dict[HookSite, Tensor]
    streams: dict[Stream, Tensor]
    site_outputs: dict[tuple[Site, int], Tensor]
    final_normed: Tensor
    logits_before: Tensor
    logits: Tensor
    capped: Tensor


@dataclass(frozen=True)
class Gradients:
    """What is kept of the backward pass. What the objective cannot see is absent: there it is zero.

    Attributes:
        losses: of every row [B]; of rows without a loss, anything.
        traced: the traced objectives, of the rows of each of `Plan.traces` [m].
        at: by hook point and layer [B, ...].
        at_sites: by dictionary's site and layer, behind the splice [B, T, s].
        at_loss_logits: at the losses' tokens [B, 1, V].
        at_other_logits: of the rows that set gradients there [T, V]; zero at the loss's token.
        directions: of each row, the gradient at the last residual stream that its objective can see, at the
            plan's direction tokens [B, n, d].
    """

    losses: Tensor
    traced: list[Tensor]
    at: dict[HookSite, Tensor]
    at_sites: dict[tuple[Site, int], Tensor]
    at_loss_logits: Tensor | None
    at_other_logits: dict[int, Tensor]
    directions: Tensor


def widen_cache(cache: Cache) -> None:
    """Makes float32 of what a forward pass in half precision left, each tensor in place of the narrow one."""
    for layers in cache.values.values():
        layers[:] = map(wide, layers)
    for site in cache.read:
        cache.read[site] = wide(cache.read[site])


def widen(cache: Cache, gradients: Gradients) -> None:
    """The same with what the backward pass left."""
    widen_cache(cache)
    of_sites: list[dict[Any, Tensor]] = [gradients.at, gradients.at_sites]
    for own in of_sites:
        for site in own:
            own[site] = wide(own[site])


def zero_padding(cache: Cache, inputs: Inputs) -> None:
    """Sets what is kept to zero wherever there is only padding: after the backward pass, which needs it."""
    if not inputs.has_padding:
        return
    for x in cache.read.values():
        x[inputs.padded_rows, inputs.padded_tokens] = 0
    for hook_point, layers in cache.values.items():
        for x in layers:
            if hook_point in HEAD_HOOK_POINTS | PAIR_HOOK_POINTS:
                x[inputs.padded_rows, :, inputs.padded_tokens] = 0
            else:
                x[inputs.padded_rows, inputs.padded_tokens] = 0

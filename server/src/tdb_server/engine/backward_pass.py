"""The backward pass over a batch, from every row's objective.

One `autograd.grad` gives the gradients of all hook points that somebody asked for. Rows do not touch each
other, so the gradient of the sum is each row's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import AttentionTraceType
from tdb_server.engine.cache import Cache, Gradients, Graph
from tdb_server.engine.inputs import ALL_WRITES, Inputs, TracedRows
from tdb_server.engine.interventions import set_values
from tdb_server.engine.objectives import losses, traced_values
from tdb_server.engine.plan import Plan
from tdb_server.engine.planned_interventions import logit_interventions, logits_of_losses
from tdb_server.engine.references import References
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.engine.streams import Stream
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import NO_HOOKS, Hooks
from tdb_server.model.precision import wide

Key = TypeVar("Key", bound=Hashable)
LossesOf = Callable[[Tensor, Tensor], Tensor]
"""From the logits at the losses' tokens, before and behind their cap [B, V], to all rows' losses [B]."""


@dataclass(frozen=True)
class _Batch:
    """A batch on its way back."""

    model: SplicedModel
    plan: Plan
    inputs: Inputs
    cache: Cache
    graph: Graph
    losses_of: LossesOf


def backward(
    model: SplicedModel, plan: Plan, inputs: Inputs, cache: Cache, graph: Graph, references: References | None
) -> Gradients:
    """Runs the backward pass from every row's objective, where a gradient is needed.

    Args:
        model: that derives; objectives are float32, whatever the pass was.
        references: what was kept of the prompts that rows are compared with.
    """
    predictions = None if references is None else references.predictions

    def losses_of(logits: Tensor, capped: Tensor) -> Tensor:
        terms = inputs.host_loss_terms, inputs.loss_terms
        return losses(*terms, logits, capped, predictions, inputs.divergences)

    batch = _Batch(model, plan, inputs, cache, graph, losses_of)
    with torch.enable_grad():
        of_rows = losses_of(graph.logits, graph.capped)
        for along in inputs.directions:
            own = wide(graph.streams[along.stream][along.rows, inputs.loss_tokens[along.rows]])
            values = (own * along.vectors.to(own.dtype)).sum(dim=-1)
            of_rows = of_rows.index_add(0, along.rows, values.to(of_rows.dtype))
        traced = [_traced(batch, one) for one in inputs.traces]
        if not plan.needs_gradient:
            directions = _directions(plan, inputs, cache, None, {})
            return Gradients(of_rows, [one.detach() for one in traced], {}, {}, None, {}, directions)
        terms = [one.sum() for one in traced]
        if len(inputs.loss_rows):
            is_all = len(inputs.loss_rows) == len(plan.rows)
            terms.append((of_rows if is_all else of_rows[inputs.loss_rows]).sum())
        others: dict[int, Tensor] = {}
        for index in range(len(plan.rows)):
            if (set_there := _other_logits(model.decoder, plan, graph, index)) is not None:
                others[index], term = set_there
                terms.append(term)
    wants_logits = HookPoint.LOGITS in plan.kept.gradients
    asked = [*graph.sites.values(), *graph.streams.values(), *graph.site_outputs.values()]
    asked += [graph.logits_before] if wants_logits else []
    gradients = iter(torch.autograd.grad(terms, asked, allow_unused=True))
    at, at_streams = _present(graph.sites, gradients), _present(graph.streams, gradients)
    at_sites = _present(graph.site_outputs, gradients)
    return Gradients(
        of_rows.detach(),
        [one.detach() for one in traced],
        at,
        at_sites,
        next(gradients) if wants_logits else None,
        others,
        _directions(plan, inputs, cache, at.get(model.last_residual), at_streams),
    )


def _present(asked: dict[Key, Tensor], found: Iterator[Tensor | None]) -> dict[Key, Tensor]:
    """The gradients that are not absent, under the keys they were asked for."""
    return {key: gradient for key, gradient in zip(asked, found, strict=False) if gradient is not None}


def _directions(
    plan: Plan, inputs: Inputs, cache: Cache, at_end: Tensor | None, at_streams: dict[Stream, Tensor]
) -> Tensor:
    """The directions of interest of all rows [B, n, d]: each at the last stream that its objective can see.

    Args:
        at_end: gradients at the last residual stream; None where no objective sees it.
        at_streams: gradients where objectives before the logits start.
    """
    tokens = inputs.direction_tokens
    found: Tensor | None = None
    for stream in dict.fromkeys(row.stream for row in plan.rows):
        gradient = at_end if stream is None else at_streams.get(stream)
        if gradient is not None:
            own = wide(gradient[inputs.row_indices[:, None], tokens])
        else:
            own = cache.final_residual.new_zeros(*tokens.shape, cache.final_residual.shape[-1])
        is_own = inputs.depths == (ALL_WRITES if stream is None else stream.depth)
        found = own if found is None else torch.where(is_own[:, None, None], own, found)
    assert found is not None
    return found * inputs.is_direction[:, :, None].to(found.dtype) if inputs.is_ragged else found


def _traced(batch: _Batch, traced: TracedRows) -> Tensor:
    """The traced objectives of rows [m]."""
    decoder, autoencoders = batch.model.decoder, batch.model.autoencoders
    trace, rows = traced.trace, traced.rows
    residual = batch.graph.streams[batch.plan.trace_stream(trace)]
    if trace.attention_trace_type is not AttentionTraceType.V:
        return traced_values(decoder, autoencoders, trace, residual, rows, traced.node)
    query, key, head = traced.node
    layer_index = trace.node.layer_index
    assert layer_index is not None
    probs = batch.cache.values[HookPoint.ATTN_QK_PROBS][layer_index][rows, head, query, key]
    towards = (_loss_directions if trace.downstream is None else _downstream_directions)(batch, traced)
    scale = decoder.write_scales.get(HookPoint.ATTN_QK_PROBS)
    if scale is not None:
        towards = towards / batch.cache.values[scale][layer_index][rows, query]
    return probs * traced_values(decoder, autoencoders, trace, residual, rows, traced.node, towards)


def _loss_directions(batch: _Batch, traced: TracedRows) -> Tensor:
    """Where the loss reads, at the queries of traced values [m, d]: zero where it does not see them."""
    decoder, cache = batch.model.decoder, batch.cache
    at_loss = batch.inputs.row_indices, batch.inputs.loss_tokens  # the loss sees one token alone
    seen, hooks = cache.final_residual[at_loss].requires_grad_(), NO_HOOKS
    if HookPoint.RESID_LN_F_SCALE in cache.values:  # as it is in the run, where it may be set
        scale = cache.values[HookPoint.RESID_LN_F_SCALE][0][at_loss]
        hooks = Hooks(lambda *_: wide(scale), frozenset({HookPoint.RESID_LN_F_SCALE}))
    set_logits = [one for one in logits_of_losses(batch.plan) if one.is_forward]
    before = set_values(decoder.logits(seen, hooks)[:, None], set_logits)  # [B, 1, V]
    capped = set_values(decoder.cap(before), set_logits) if decoder.caps_logits else before
    (direction,) = torch.autograd.grad(batch.losses_of(before[:, 0], capped[:, 0]).sum(), seen)
    rows, query = traced.rows, traced.node[0]
    return direction[rows] * (query == batch.inputs.loss_tokens[rows])[:, None]


def _downstream_directions(batch: _Batch, traced: TracedRows) -> Tensor:
    """Where downstream nodes read, at the queries of traced values [m, d]."""
    downstream, rows = traced.trace.downstream, traced.rows
    assert downstream is not None
    residual = wide(batch.graph.streams[batch.plan.trace_stream(downstream)].detach()).requires_grad_()
    values = traced_values(
        batch.model.decoder, batch.model.autoencoders, downstream, residual, rows, traced.downstream
    )
    (direction,) = torch.autograd.grad(values.sum(), residual)
    return direction[rows, traced.node[0]]


def _other_logits(decoder: Decoder, plan: Plan, graph: Graph, index: int) -> tuple[Tensor, Tensor] | None:
    """Gradients that a row sets at logits of other tokens than its loss's, which the loss does not see.

    Returns:
        Them [T, V], zero at the loss's token, and a term whose gradient carries them back; None where none is
        set.
    """
    row = plan.rows[index]
    if row.stream is not None or row.inference.loss is None:
        return None
    own = [one.alone for one in logit_interventions(plan) if one.row == index]
    if not any(not one.is_forward and one.ablation.value != 0 for one in own):
        return None
    zeros = wide(graph.logits[:0]).new_zeros(1, row.n_tokens, graph.logits.shape[1])
    gradient = set_values(zeros, [one for one in own if not one.is_forward])
    gradient[0, row.loss_token] = 0
    blocked = [replace(one, ablation=replace(one.ablation, value=0.0)) for one in own if one.is_forward]
    at_final_normed = decoder.unembed_transposed(set_values(gradient, blocked)[0])  # [T, d]
    return gradient[0], (wide(graph.final_normed[index, : row.n_tokens]) * at_final_normed).sum()

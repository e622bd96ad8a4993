"""One forward and one backward pass over a batch, and what is kept of them.

The embedding output alone requires a gradient, so the graph holds activations only. The forward pass keeps
the hook points that somebody asked for; one `autograd.grad` from the sum of all rows' objectives gives their
gradients. Rows do not touch each other, so the gradient of the sum is each row's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import AttentionTraceType, Trace
from tdb_server.engine.interventions import (
    HEAD_HOOK_POINTS,
    PAIR_HOOK_POINTS,
    Intervention,
    set_gradients,
    set_values,
)
from tdb_server.engine.latents import splice
from tdb_server.engine.objectives import LossTerms, loss_direction, loss_terms, losses, traced_value
from tdb_server.engine.plan import HookSite, Plan, autoencoder_of, is_of_autoencoder, trace_site
from tdb_server.engine.transfers import Array, upload
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import INNER_HOOK_POINTS, Hooks

Key = TypeVar("Key", bound=Hashable)
_ALL = 2**31
"""A depth behind all writes."""
_NO_CELLS = torch.zeros(0, 0, dtype=torch.bool)


@dataclass(frozen=True)
class Model:
    """What is run: a decoder and the autoencoders that are spliced in."""

    decoder: Decoder
    autoencoders: tuple[Autoencoder, ...]


class Inputs:
    """What a plan brings to the device, in one copy.

    Attributes:
        token_ids: padded on the right [B, T].
        last: each row's last token [B].
        rows: 0 to B - 1.
        direction_tokens: where directions of interest can be other than zero [B, n], padded with the first.
        is_direction: which of these are not padding [B, n], 1 or 0.
        logit_tokens: the tokens whose logits are wanted [B, m], padded with the last.
        padded_rows: the row of each token that is padding, and
        padded_tokens: where it is.
        n_tokens: of each row [B].
        depths: writes to the residual stream at this depth or before are seen by a row's objective [B].
        losses: the arrays of `LossTerms`.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        rows, n_tokens = plan.rows, plan.n_tokens
        self.loss_terms = loss_terms([row.inference.loss for row in rows])
        self.host_direction_tokens, is_direction = _padded([list(row.direction_tokens) for row in rows])
        self.host_logit_tokens, _ = _padded([list(row.logit_tokens) for row in rows], pad_with_last=True)
        padding = np.array(
            [(index, token) for index, row in enumerate(rows) for token in range(row.n_tokens, n_tokens)],
            np.int64,
        ).reshape(-1, 2)
        uploaded = upload(
            [
                np.array([[*one.inference.token_ids, *[0] * (n_tokens - one.n_tokens)] for one in rows]),
                np.array([row.n_tokens - 1 for row in rows]),
                np.arange(len(rows)),
                self.host_direction_tokens,
                is_direction.astype(np.float64),
                self.host_logit_tokens,
                padding[:, 0],
                padding[:, 1],
                np.array([row.n_tokens for row in rows]),
                np.array([_ALL if (depth := row.direction_depth) is None else depth for row in rows]),
                *self.loss_terms.arrays,
            ],
            device,
        )
        self.token_ids, self.last, self.rows, self.direction_tokens, self.is_direction = uploaded[:5]
        self.logit_tokens, self.padded_rows, self.padded_tokens = uploaded[5:8]
        self.n_tokens, self.depths, *self.losses = uploaded[8:]
        self.has_padding = len(padding) > 0
        self.is_ragged = not is_direction.all()


def _padded(rows: Sequence[Sequence[int]], *, pad_with_last: bool = False) -> tuple[Array, Array]:
    """Rows of equal length, and which of their entries are not padding."""
    width = max(len(row) for row in rows)
    is_own = np.array([[place < len(row) for place in range(width)] for row in rows])
    pads = [row[-1] if pad_with_last else row[0] for row in rows]
    found = [[*row, *[pad] * (width - len(row))] for row, pad in zip(rows, pads, strict=True)]
    return np.array(found, np.int64), is_own


@dataclass(frozen=True)
class Cache:
    """What is kept of the forward pass.

    Attributes:
        values: by hook point, of each layer in order [B, ...]; of hook points that no layer has, one.
        final_residual: the last residual stream [B, T, d].
        final_normed: what the unembedding reads [B, T, d].
        last_logits: of each row's last token, after interventions [B, V].
        graph: what the backward pass starts from, and where it is asked for gradients.
    """

    values: dict[HookPoint, list[Tensor]]
    final_residual: Tensor
    final_normed: Tensor
    last_logits: Tensor
    graph: Graph


@dataclass(frozen=True)
class Graph:
    """What autograd needs.

    Attributes:
        sites: tensors whose gradients are wanted.
        site_outputs: autoencoders' sites behind the splice, whose gradients are wanted.
        logits: the last tokens' logits that losses are computed of, and the same before gradients are set.
    """

    sites: dict[HookSite, Tensor]
    site_outputs: dict[tuple[Site, int], Tensor]
    logits: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Gradients:
    """What is kept of the backward pass. What the objective cannot see is absent: there it is zero.

    Attributes:
        losses: of every row [B]; of rows without a loss, anything.
        traced: the traced objectives, by row.
        at: by hook point and layer [B, ...].
        at_sites: by autoencoder's site and layer, behind the splice [B, T, s].
        at_last_logits: [B, V].
        at_earlier_logits: of the rows that set gradients there [T - 1, V].
        directions: of each row, the gradient at the last residual stream that its objective can see, at the
            plan's direction tokens [B, n, d].
    """

    losses: Tensor
    traced: dict[int, Tensor]
    at: dict[HookSite, Tensor]
    at_sites: dict[tuple[Site, int], Tensor]
    at_last_logits: Tensor | None
    at_earlier_logits: dict[int, Tensor]
    directions: Tensor


class _Recorder:
    """The hook of a forward pass: sets what the plan sets, and keeps what it keeps."""

    def __init__(self, plan: Plan, model: Model, check_cancelled: Callable[[], None]) -> None:
        self._plan, self._model, self._check_cancelled = plan, model, check_cancelled
        self.values: dict[HookSite, Tensor] = {}
        self.site_outputs: dict[tuple[Site, int], Tensor] = {}
        self._hidden_cells = model.decoder.hidden_cells(plan.n_tokens)
        self._trace_sites = trace_sites(plan)
        self._past_trace: set[int] = set()  # rows whose trace starts here or before

    def __call__(self, hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        if hook_point is HookPoint.RESID_POST_MLP:
            check_cancelled = self._check_cancelled
            check_cancelled()
            if x.requires_grad:
                # Not through `self`, which holds the graph: a cycle across autograd is never collected.
                x.register_hook(lambda _: check_cancelled())  # type: ignore[no-untyped-call]
        site = (hook_point, layer_index)
        interventions = self._plan.interventions.get(site, ())
        x = set_values(x, [one for one in interventions if one.is_forward], self._hidden_cells)
        if self._is_kept(site):
            self.values[site] = x
        self._past_trace |= self._trace_sites.get(site, frozenset())
        x = set_gradients(x, self._seen_gradients(interventions), self._hidden_cells)
        for autoencoder in self._model.autoencoders:
            if autoencoder.site.hook_point is hook_point and layer_index in autoencoder.layers:
                x = self._splice(autoencoder, layer_index, x)
        return x

    def _is_kept(self, site: HookSite) -> bool:
        plan = self._plan
        return (
            site[0] in plan.values
            or site[0] in plan.gradients
            or site in self._trace_sites
            or site == last_residual(self._model.decoder)
        )

    def _seen_gradients(self, interventions: Sequence[Intervention]) -> list[Intervention]:
        """The gradients to set: none of a row whose trace starts here or before.

        Its own gradients never get here, but those of other rows take the whole batch's tensor along.
        """
        return [one for one in interventions if not one.is_forward and one.row not in self._past_trace]

    def _splice(self, autoencoder: Autoencoder, layer_index: int, x: Tensor) -> Tensor:
        of_latents = latent_interventions(self._plan, self._model, autoencoder, layer_index)
        seen = self._seen_gradients(of_latents)
        interventions = [one for one in of_latents if one.is_forward or one in seen]
        if interventions:
            x = splice(autoencoder.layers[layer_index], x, interventions)
        if autoencoder.site in self._plan.site_gradients and x.requires_grad:
            self.site_outputs[autoencoder.site, layer_index] = x
        return x


def latent_interventions(
    plan: Plan, model: Model, autoencoder: Autoencoder, layer_index: int
) -> list[Intervention]:
    """What is set of an autoencoder's latents and errors in a layer, in the order of rows."""
    found = [
        one
        for (hook_point, layer), interventions in plan.interventions.items()
        if layer == layer_index and is_of_autoencoder(hook_point)
        if autoencoder_of(hook_point, model.autoencoders) is autoencoder
        for one in interventions
    ]
    return sorted(found, key=lambda one: one.row)


def trace_sites(plan: Plan) -> dict[HookSite, frozenset[int]]:
    """The residual streams that traces start from, each with the rows whose objective it is."""
    found: dict[HookSite, frozenset[int]] = {}
    for index, row in enumerate(plan.rows):
        if row.trace is not None:
            site = trace_site(row.trace)
            found[site] = found.get(site, frozenset()) | {index}
            if row.trace.downstream is not None:
                found.setdefault(trace_site(row.trace.downstream), frozenset())
    return found


def last_residual(decoder: Decoder) -> HookSite:
    """The residual stream that the final norm reads."""
    return HookPoint.RESID_POST_MLP, decoder.config.n_layers - 1


def forward(model: Model, plan: Plan, inputs: Inputs, check_cancelled: Callable[[], None]) -> Cache:
    """Runs the forward pass and the last tokens' logits.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between layers on both ways.
    """
    decoder = model.decoder
    recorder = _Recorder(plan, model, check_cancelled)
    altered = {hook_point for hook_point, _ in plan.interventions}
    inner = INNER_HOOK_POINTS & (plan.values | plan.gradients | altered)
    hooks = Hooks(recorder, inner)
    with torch.set_grad_enabled(plan.has_objective):
        embedding = decoder.embed(inputs.token_ids).requires_grad_(plan.has_objective)
        residual = decoder.forward(embedding, hooks)
        normed = decoder.read_by_logits(residual, hooks)
        last = normed[inputs.rows, inputs.last]
        logits = decoder.unembed(last)  # [B, V]
        interventions = [one for one in logit_interventions(plan) if _is_at_last_token(one)]
        before = _set_last(logits, [one for one in interventions if one.is_forward], set_values)
        after = _set_last(before, [one for one in interventions if not one.is_forward], set_gradients)
    of_traces = trace_sites(plan)
    sites = {
        site: x
        for site, x in recorder.values.items()
        if site[0] in plan.gradients or site in of_traces or site == last_residual(decoder)
    }
    by_hook_point: dict[HookPoint, list[Tensor]] = {}
    for (hook_point, _), x in recorder.values.items():  # the forward pass comes by layers in order
        if hook_point in plan.values:
            by_hook_point.setdefault(hook_point, []).append(x)
    graph = Graph(sites, recorder.site_outputs, (before, after))
    return Cache(by_hook_point, residual, normed, after.detach(), graph)


def logit_interventions(plan: Plan) -> list[Intervention]:
    """What is set of logits."""
    return plan.interventions.get((HookPoint.LOGITS, None), [])


def _is_at_last_token(one: Intervention) -> bool:
    return one.ablation.index.tensor_indices[0] in (None, one.n_tokens - 1)


def _set_last(
    logits: Tensor,
    interventions: Sequence[Intervention],
    apply: Callable[[Tensor, Sequence[Intervention], Tensor], Tensor],
) -> Tensor:
    """Sets logits of the last tokens [B, V], or gradients there."""
    if not interventions:
        return logits
    return apply(logits, [_LastLogit(one.row, 1, one.ablation) for one in interventions], _NO_CELLS)


class _LastLogit(Intervention):
    """An intervention in the logits of a row's last token alone."""

    def set_in(self, batch: Tensor, hidden_cells: Tensor) -> None:
        entry = self.ablation.index.tensor_indices[1]
        batch[self.row, slice(None) if entry is None else slice(entry, entry + 1)] = self.ablation.value


def backward(model: Model, plan: Plan, inputs: Inputs, cache: Cache) -> Gradients:
    """Runs the backward pass from every row's objective."""
    decoder, graph = model.decoder, cache.graph
    no_losses = cache.last_logits.new_zeros(len(plan.rows))
    if not plan.has_objective:
        directions = cache.final_residual.new_zeros(
            *inputs.direction_tokens.shape, cache.final_residual.shape[-1]
        )
        return Gradients(no_losses, {}, {}, {}, None, {}, directions)
    earlier: dict[int, Tensor] = {}
    traced: dict[int, Tensor] = {}
    with torch.enable_grad():
        found = losses(inputs.loss_terms, inputs.losses, graph.logits[1])
        terms = []
        with_loss = [row.trace is None and row.inference.loss is not None for row in plan.rows]
        if all(with_loss):
            terms.append(found.sum())
        elif any(with_loss):
            terms += [found[index] for index, is_wanted in enumerate(with_loss) if is_wanted]
        for index, row in enumerate(plan.rows):
            if row.trace is not None:
                traced[index] = _traced(model, plan, inputs, cache, index)
                terms.append(traced[index])
            elif row.inference.loss is not None:
                terms += _at_earlier_logits(decoder, plan, cache, index, earlier)
        total = terms[0] if len(terms) == 1 else torch.stack(terms).sum()
    wants_logits = HookPoint.LOGITS in plan.gradients
    asked = [
        *graph.sites.values(),
        *graph.site_outputs.values(),
        *([graph.logits[0]] if wants_logits else []),
    ]
    gradients = iter(torch.autograd.grad(total, asked, allow_unused=True))
    at = _present(graph.sites, gradients)
    at_sites = _present(graph.site_outputs, gradients)
    return Gradients(
        found.detach(),
        {row: one.detach() for row, one in traced.items()},
        at,
        at_sites,
        next(gradients) if wants_logits else None,
        earlier,
        _directions(model.decoder, plan, inputs, cache, at),
    )


def without_graph(cache: Cache, inputs: Inputs) -> Cache:
    """The cache after the backward pass: without the graph, and zero wherever there is only padding."""
    values = {place: [x.detach() for x in layers] for place, layers in cache.values.items()}
    if inputs.has_padding:
        for hook_point, layers in values.items():
            for x in layers:
                if hook_point in HEAD_HOOK_POINTS | PAIR_HOOK_POINTS:
                    x[inputs.padded_rows, :, inputs.padded_tokens] = 0
                else:
                    x[inputs.padded_rows, inputs.padded_tokens] = 0
    nothing = Graph({}, {}, (cache.last_logits, cache.last_logits))
    return Cache(
        values, cache.final_residual.detach(), cache.final_normed.detach(), cache.last_logits, nothing
    )


def _present(asked: dict[Key, Tensor], found: Iterator[Tensor | None]) -> dict[Key, Tensor]:
    """The gradients that are not absent, under the keys they were asked for."""
    return {key: gradient for key, gradient in zip(asked, found, strict=False) if gradient is not None}


def _directions(
    decoder: Decoder, plan: Plan, inputs: Inputs, cache: Cache, at: dict[HookSite, Tensor]
) -> Tensor:
    """The directions of interest of all rows [B, n, d]."""
    rows, tokens = inputs.rows[:, None], inputs.direction_tokens
    sites = [last_residual(decoder) if row.trace is None else trace_site(row.trace) for row in plan.rows]
    if len(set(sites)) == 1:
        found = _gathered(at.get(sites[0]), rows, tokens, cache)
    else:
        found = torch.stack(
            [_gathered(at.get(site), rows[index], tokens[index], cache) for index, site in enumerate(sites)]
        )
    return found * inputs.is_direction[:, :, None].to(found.dtype) if inputs.is_ragged else found


def _gathered(gradient: Tensor | None, rows: Tensor, tokens: Tensor, cache: Cache) -> Tensor:
    if gradient is None:
        return cache.final_residual.new_zeros(*tokens.shape, cache.final_residual.shape[-1])
    return gradient[rows, tokens]


def _traced(model: Model, plan: Plan, inputs: Inputs, cache: Cache, index: int) -> Tensor:
    """The traced objective of a row."""
    row, trace = plan.rows[index], plan.rows[index].trace
    assert trace is not None
    residual = cache.graph.sites[trace_site(trace)][index, : row.n_tokens]
    probs = direction = None
    if trace.attention_trace_type is AttentionTraceType.V:
        query, key, head = trace.node.tensor_indices
        assert trace.node.layer_index is not None
        probs = cache.values[HookPoint.ATTN_QK_PROBS][trace.node.layer_index][
            index, head, query, key
        ].detach()
        direction = _downstream_direction(model, plan, inputs, cache, index, trace)
    return traced_value(model.decoder, model.autoencoders, trace, residual, probs, direction)


def _downstream_direction(
    model: Model, plan: Plan, inputs: Inputs, cache: Cache, index: int, trace: Trace
) -> Tensor:
    """Where a traced value is projected: the downstream node's read direction, or the loss's [T, d]."""
    n_tokens = plan.rows[index].n_tokens
    if trace.downstream is None:
        terms = LossTerms(*(one[index : index + 1] for one in inputs.loss_terms.arrays))
        uploaded = [one[index : index + 1] for one in inputs.losses]
        return loss_direction(model.decoder, terms, uploaded, cache.final_residual[index, :n_tokens])
    before = cache.graph.sites[trace_site(trace.downstream)][index, :n_tokens]
    residual = before.detach().requires_grad_()
    value = traced_value(model.decoder, model.autoencoders, trace.downstream, residual)
    (direction,) = torch.autograd.grad(value, residual)
    return direction


def _at_earlier_logits(
    decoder: Decoder, plan: Plan, cache: Cache, index: int, earlier: dict[int, Tensor]
) -> list[Tensor]:
    """What gives logits before the last token's, which no loss sees, the gradients that the row sets."""
    n_earlier = plan.rows[index].n_tokens - 1
    own = [one for one in logit_interventions(plan) if one.row == index]
    if not any(not one.is_forward and one.ablation.value != 0 for one in own):
        return []
    gradient = cache.last_logits.new_zeros(n_earlier, cache.last_logits.shape[1])
    is_set = torch.zeros_like(gradient, dtype=torch.bool)
    for one in own:
        token, entry = one.ablation.index.tensor_indices
        if token == n_earlier:
            continue
        cells = (slice(None) if token is None else token, slice(None) if entry is None else entry)
        if one.is_forward:
            is_set[cells] = True
        else:
            gradient[cells] = one.ablation.value
    earlier[index] = gradient
    flowing = gradient.masked_fill(is_set, 0) @ decoder.unembedding  # [T - 1, d]
    return [(cache.final_normed[index, :n_earlier] * flowing).sum()]

"""One forward and one backward pass over a batch, and what is kept of them.

Where nothing that is wanted needs a gradient there is no backward pass, and rows that begin alike are run as
one (`shared_beginnings.py`).

The embedding output alone requires a gradient, so the graph holds activations only. The forward pass keeps
the hook points that somebody asked for; one `autograd.grad` from all rows' objectives gives their gradients.
Rows do not touch each other, so the gradient of the sum is each row's own gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import AttentionTraceType
from tdb_server.engine.cache import Cache, Gradients, Graph, Model
from tdb_server.engine.inputs import ALL_WRITES, Inputs, TracedRows
from tdb_server.engine.interventions import (
    HEAD_HOOK_POINTS,
    PAIR_HOOK_POINTS,
    Baseline,
    Intervention,
    set_gradients,
    set_values,
)
from tdb_server.engine.latents import autoencoder_of, splice
from tdb_server.engine.objectives import Predictions, losses, traced_values
from tdb_server.engine.plan import Plan
from tdb_server.engine.references import References
from tdb_server.engine.shared_beginnings import Beginnings, layer_of, shared_beginnings
from tdb_server.engine.streams import Stream
from tdb_server.model.autoencoder import Autoencoder, MlpInputs
from tdb_server.model.backward_rules import BackwardRules
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import INNER_HOOK_POINTS, NO_HOOKS, Hooks, HookSite
from tdb_server.model.precision import wide

Key = TypeVar("Key", bound=Hashable)
LossesOf = Callable[[Tensor, Tensor], Tensor]
"""From the logits at the losses' tokens, before and behind their cap [B, V], to all rows' losses [B]."""
_READ_BY_HEADS = (HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V)
"""What heads read from a token is a product of."""


_OUTSIDE_COMPONENTS = frozenset(
    {
        HookPoint.RESID_POST_EMB,
        HookPoint.ATTN_V_OUT,
        HookPoint.RESID_DELTA_ATTN,
        HookPoint.RESID_POST_ATTN,
        HookPoint.RESID_DELTA_MLP,
        HookPoint.RESID_POST_MLP,
        HookPoint.RESID_LN_F_SCALE,
        HookPoint.LOGITS,
    }
)
"""Hook points before and behind what heads read and what MLPs write."""


class _Recorder:
    """The hook of a forward pass: sets what the plan sets, and keeps what it keeps."""

    def __init__(
        self,
        plan: Plan,
        model: Model,
        references: References | None,
        rules: BackwardRules | None,
        beginnings: Beginnings | None,
        check_cancelled: Callable[[], None],
    ) -> None:
        self._plan, self._model, self._check_cancelled = plan, model, check_cancelled
        self._references, self._beginnings = references, beginnings
        self._read_by_heads: dict[HookPoint, Tensor] = {}
        self.values: dict[HookPoint, list[Tensor]] = {}
        self.graph_sites: dict[HookSite, Tensor] = {}
        self.streams: dict[Stream, Tensor] = {}
        self.read: dict[tuple[Site, int], Tensor] = {}
        self._mlp_inputs = MlpInputs(model.decoder, rules)
        self.site_outputs: dict[tuple[Site, int], Tensor] = {}
        self._past_trace: set[int] = set()
        """Rows whose objective is at this point or before. Their gradient is zero from here on, but the way
        back runs over the whole batch: a gradient that is set here would flow into them. So none is."""

    def __call__(self, hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        if hook_point is HookPoint.RESID_POST_MLP:
            check_cancelled = self._check_cancelled
            check_cancelled()
            if x.requires_grad:
                # Not through `self`, which holds the graph: a cycle across autograd is never collected.
                x.register_hook(lambda _: check_cancelled())  # type: ignore[no-untyped-call]
        plan, site = self._plan, (hook_point, layer_index)
        interventions = self._placed(plan.interventions.get(site, ()), site)
        hidden_cells = None
        if interventions and hook_point in PAIR_HOOK_POINTS:
            assert layer_index is not None
            (hidden_cells,) = self._model.decoder.hidden_cells(plan.n_tokens, (layer_index,))
        forward_ones = [one for one in interventions if one.is_forward]
        forward_ones, of_pairs = _split(forward_ones)
        x = self._set_contributions(x, of_pairs)
        x = set_values(x, forward_ones, hidden_cells, self._baseline(site))
        if hook_point in _READ_BY_HEADS:
            self._read_by_heads[hook_point] = x
        if hook_point in plan.kept.values:  # the forward pass comes by layers in order
            self.values.setdefault(hook_point, []).append(self._of_all_rows(x, site).detach())
        if hook_point in plan.kept.gradients or site == last_residual(self._model.decoder):
            self.graph_sites[site] = x
        own = self._starting(Stream(*site, is_behind_dictionary=False), x)
        set_no_gradient = self._past_trace | own
        later = plan.trace_streams.get(Stream(*site), set())
        self._past_trace |= own | later
        backward = [one for one in interventions if self._sets_gradient(one, self._past_trace)]
        x = set_gradients(x, backward, hidden_cells)
        for autoencoder in self._model.autoencoders:
            if autoencoder.site.hook_point is hook_point and layer_index in autoencoder.layers:
                x = self._splice(autoencoder, layer_index, x, set_no_gradient)
        self._starting(Stream(*site), x)
        if self._beginnings is not None and hook_point is HookPoint.RESID_POST_MLP:
            source = self._beginnings.parting.get(layer_index or 0)
            x = x if source is None else x[source]
        self._mlp_inputs.see(hook_point, x)
        return x

    def _baselines_of(self, place: int, site: HookSite) -> tuple[int, ...]:
        """The baselines of the row that stands at a place among those that are run."""
        if self._beginnings is not None:
            place = int(self._beginnings.running[self._layer(site)][place])
        return self._plan.rows[place].baselines

    def _baseline(self, site: HookSite) -> Baseline | None:
        """What rows' cells are in their baseline prompts."""
        references = self._references
        if references is None:
            return None
        return lambda place: references.values(self._baselines_of(place, site), *site)

    def _set_contributions(self, x: Tensor, interventions: Sequence[Intervention]) -> Tensor:
        """Sets what heads read from one token [B, H, T, e] to what they read from it in baselines."""
        if not interventions:
            return x
        assert self._references is not None
        x = x.clone()
        for one in dict.fromkeys(interventions):  # the same twice is set once
            (query, head, _), key = one.ablation.index.tensor_indices, one.ablation.attended_to_token
            layer_index = one.ablation.index.layer_index
            assert query is not None
            assert head is not None
            assert key is not None
            assert layer_index is not None
            group = head // self._model.decoder.config.n_heads_per_group
            probs, values = (self._read_by_heads[at] for at in _READ_BY_HEADS)
            own = probs[one.row, head, query, key] * values[one.row, group, key]
            baselines = self._baselines_of(one.row, (HookPoint.ATTN_V_OUT, layer_index))
            other = self._references.contribution(baselines, layer_index, query, key, head, group)
            x[one.row, head, query] += other.to(x.dtype) - own
        return x

    def _layer(self, site: HookSite) -> int:
        return layer_of(site, self._plan.n_layers)

    def _of_all_rows(self, x: Tensor, site: HookSite) -> Tensor:
        """What a hook point has of the rows that are run, for all rows of the batch."""
        return x if self._beginnings is None else x[self._beginnings.places[self._layer(site)]]

    def _placed(self, interventions: Sequence[Intervention], site: HookSite) -> Sequence[Intervention]:
        """Interventions of the rows that are run, at their places among these."""
        if self._beginnings is None or not interventions:
            return interventions
        place_of = {int(row): at for at, row in enumerate(self._beginnings.running[self._layer(site)])}
        return [
            replace(one, row=place_of[one.row])
            for one in interventions
            if one.is_forward and one.row in place_of
        ]

    def rows_left(self, hook_point: HookPoint, layer_index: int) -> Tensor | None:
        """At which places among the rows that are run something is left; None for all of them."""
        site = hook_point, layer_index
        set_here = self._placed(self._plan.interventions.get(site, ()), site)
        replaced = {one.row for one in set_here if one.leaves_nothing}
        if not replaced:
            return None
        n_run = len(self._plan.rows)
        if self._beginnings is not None:
            n_run = len(self._beginnings.running[layer_index])
        left = np.array([place for place in range(n_run) if place not in replaced], np.int64)
        return torch.from_numpy(left).to(self._model.decoder.device)

    def _starting(self, stream: Stream, x: Tensor) -> set[int]:
        """The rows whose trace starts from a stream, which is kept for them."""
        found = self._plan.trace_streams.get(stream)
        if found is None:
            return set()
        self.streams[stream] = self._of_all_rows(x, (stream.hook_point, stream.layer_index))
        return found

    def _sets_gradient(self, one: Intervention, past_trace: set[int]) -> bool:
        return not one.is_forward and one.row not in past_trace

    def _latent_baseline(self, autoencoder: Autoencoder, layer_index: int) -> Baseline | None:
        """What rows' latents are in their baseline prompts."""
        references, site = self._references, (autoencoder.site.hook_point, layer_index)
        if references is None:
            return None
        return lambda place: references.latents(self._baselines_of(place, site), autoencoder, layer_index)

    def _splice(self, autoencoder: Autoencoder, layer_index: int, x: Tensor, past_trace: set[int]) -> Tensor:
        plan, site = self._plan, autoencoder.site
        of_latents = self._placed(
            latent_interventions(plan, self._model, autoencoder, layer_index), (site.hook_point, layer_index)
        )
        interventions = [one for one in of_latents if one.is_forward or self._sets_gradient(one, past_trace)]
        if not interventions and site not in plan.kept.sites:
            return x
        written = autoencoder.side_by_side(x)
        inputs = written
        if site is Site.MLP_TRANSCODER:
            inputs = self._mlp_inputs.of_layer(layer_index)
        if site in plan.kept.sites:
            self.read[site, layer_index] = self._of_all_rows(inputs, (site.hook_point, layer_index)).detach()
        if interventions:
            baseline = self._latent_baseline(autoencoder, layer_index)
            written = splice(autoencoder.layers[layer_index], inputs, written, interventions, baseline)
            if (
                site.is_stream and site.hook_point in plan.kept.values
            ):  # what goes on is what is read of a stream
                kept = self._of_all_rows(written, (site.hook_point, layer_index))
                self.values[site.hook_point][-1] = kept.detach()
        if site in plan.kept.site_gradients and written.requires_grad:
            # Another tensor than the one that a trace of the stream's own latents starts from.
            written = written.view_as(written)
            self.site_outputs[site, layer_index] = written
        return autoencoder.as_at_hook_point(written, x)


def _split(interventions: Sequence[Intervention]) -> tuple[list[Intervention], list[Intervention]]:
    """Those of whole cells, and those of what comes from one token alone."""
    of_pairs = [one for one in interventions if one.ablation.attended_to_token is not None]
    return [one for one in interventions if one.ablation.attended_to_token is None], of_pairs


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


def logit_interventions(plan: Plan) -> list[Intervention]:
    """What is set of logits."""
    return plan.interventions.get((HookPoint.LOGITS, None), [])


def last_residual(decoder: Decoder) -> HookSite:
    """The residual stream that the final norm reads."""
    return HookPoint.RESID_POST_MLP, decoder.config.n_layers - 1


def forward(
    model: Model,
    plan: Plan,
    inputs: Inputs,
    references: References | None,
    check_cancelled: Callable[[], None],
) -> tuple[Cache, Graph]:
    """Runs the forward pass and the last tokens' logits.

    Args:
        references: what was kept of the prompts that rows are compared with.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between layers on both ways.
    """
    decoder = model.decoder
    beginnings = None
    if not plan.needs_gradient:
        beginnings = shared_beginnings(plan, decoder.device)
    token_ids = inputs.token_ids if beginnings is None else inputs.token_ids[beginnings.first]
    recorder = _Recorder(plan, model, references, inputs.rules, beginnings, check_cancelled)
    altered = {hook_point for hook_point, _ in plan.interventions}
    wanted = plan.kept.values | plan.kept.gradients | altered
    if any(
        one.ablation.attended_to_token is not None for some in plan.interventions.values() for one in some
    ):
        wanted |= {*_READ_BY_HEADS}
    if any(one.site is Site.MLP_TRANSCODER for one in model.autoencoders):
        wanted |= {HookPoint.MLP_LN_SCALE}
    hooks = Hooks(recorder, INNER_HOOK_POINTS & wanted, inputs.rules)
    if wanted <= _OUTSIDE_COMPONENTS and not plan.needs_gradient and not plan.kept.sites:
        # A component that is replaced as a whole need not be computed where nobody looks inside.
        hooks = replace(hooks, rows_left=recorder.rows_left)
    with torch.set_grad_enabled(plan.needs_gradient):
        embedding = _embedded(decoder, plan, token_ids, references).requires_grad_(plan.needs_gradient)
        residual = decoder.forward(embedding, hooks)
        normed = decoder.read_by_logits(residual, hooks)
        logits = decoder.unembed(normed[inputs.rows, inputs.loss_tokens])[:, None]  # [B, 1, V]
        at_token = _logits_of_losses(plan)
        set_logits = [one for one in at_token if one.is_forward]
        before = set_values(logits, set_logits)
        # Some rows' objective is before the logits: the gradients that come past here are other rows'.
        of_losses = [one for one in at_token if not one.is_forward and plan.rows[one.row].stream is None]
        after = set_gradients(before, of_losses)
        capped = set_values(decoder.cap(after), set_logits) if decoder.caps_logits else after
    outputs = recorder.site_outputs
    graph = Graph(recorder.graph_sites, recorder.streams, outputs, normed, before, after[:, 0], capped[:, 0])
    residual, normed, capped = (wide(one.detach()) for one in (residual, normed, graph.capped))
    return Cache(recorder.values, residual, normed, capped, recorder.read), graph


def _embedded(decoder: Decoder, plan: Plan, token_ids: Tensor, references: References | None) -> Tensor:
    """The first residual stream [B, T, d]: rows that are interpolated start between baselines and prompt."""
    embedding = decoder.embed(token_ids)
    for index in plan.interpolated:
        row = plan.rows[index]
        assert references is not None
        baseline = references.values(row.baselines, HookPoint.RESID_POST_EMB, None)
        own = wide(embedding[index])
        embedding[index] = (baseline + row.embedding_share * (own - baseline)).to(embedding.dtype)
    return embedding


def _logits_of_losses(plan: Plan) -> list[Intervention]:
    """What is set of logits that losses see."""
    return [found for one in logit_interventions(plan) if (found := _at_loss_token(plan, one))]


def _at_loss_token(plan: Plan, one: Intervention) -> Intervention | None:
    """What is set of a row's logits where the token of its loss is all there is."""
    token, entry = one.ablation.index.tensor_indices
    if token not in (None, plan.rows[one.row].loss_token):
        return None
    index = replace(one.ablation.index, tensor_indices=(None, entry))
    return Intervention(one.row, 1, replace(one.ablation, index=index))


def backward(
    model: Model, plan: Plan, inputs: Inputs, cache: Cache, graph: Graph, references: References | None
) -> Gradients:
    """Runs the backward pass from every row's objective, where a gradient is needed.

    Args:
        model: that derives; objectives are float32, whatever the pass was.
        references: what was kept of the prompts that rows are compared with.
    """
    predictions = None if references is None else references.predictions

    def losses_of(logits: Tensor, capped: Tensor) -> Tensor:
        return losses(inputs.loss_terms, inputs.losses, logits, capped, predictions, inputs.divergences)

    with torch.enable_grad():
        of_rows = losses_of(graph.logits, graph.capped)
        for along in inputs.directions:
            own = wide(graph.streams[along.stream][along.rows, inputs.loss_tokens[along.rows]])
            values = (own * along.vectors.to(own.dtype)).sum(dim=-1)
            of_rows = of_rows.index_add(0, along.rows, values.to(of_rows.dtype))
        traced = [_traced(model, plan, inputs, cache, graph, losses_of, one) for one in inputs.traces]
        if not plan.needs_gradient:
            directions = _directions(plan, inputs, cache, None, {})
            return Gradients(of_rows, [one.detach() for one in traced], {}, {}, None, {}, directions)
        terms = [one.sum() for one in traced]
        if len(inputs.loss_rows):
            is_all = len(inputs.loss_rows) == len(plan.rows)
            terms.append((of_rows if is_all else of_rows[inputs.loss_rows]).sum())
        others: dict[int, Tensor] = {}
        for index, row in enumerate(plan.rows):
            if row.stream is None and row.inference.loss is not None:
                terms += _at_other_logits(model.decoder, plan, graph, index, others)
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
        _directions(plan, inputs, cache, at.get(last_residual(model.decoder)), at_streams),
    )


def run_references(
    model: Model, plan: Plan, inputs: Inputs, check_cancelled: Callable[[], None]
) -> References | None:
    """Runs the prompts that the rows of a plan are compared with forward, if there are any.

    Raises:
        Cancelled: as `check_cancelled`.
    """
    if plan.references is None:
        return None
    own = Inputs(plan.references, model.decoder.device)
    cache, graph = forward(model, plan.references, own, None, check_cancelled)
    widen_cache(cache)
    zero_padding(cache, own)
    rows, others = inputs.circuit_pairs
    logits = model.decoder.unembed(graph.final_normed[others, inputs.loss_tokens[rows]])
    predictions = None
    if plan.predictions:
        baselines, tokens = inputs.predictions
        predicted = model.decoder.cap(model.decoder.unembed(graph.final_normed[baselines, tokens]))
        predictions = Predictions.of(predicted, [len(own) for own, _ in plan.predictions])
    return References(cache, wide(logits), wide(model.decoder.cap(logits)), predictions)


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
    streams = {row.stream: row.direction_depth for row in plan.rows}
    found: Tensor | None = None
    for stream, depth in streams.items():
        gradient = at_end if stream is None else at_streams.get(stream)
        if gradient is not None:
            own = wide(gradient[inputs.rows[:, None], tokens])
        else:
            own = cache.final_residual.new_zeros(*tokens.shape, cache.final_residual.shape[-1])
        is_own = inputs.depths == (ALL_WRITES if depth is None else depth)
        found = own if found is None else torch.where(is_own[:, None, None], own, found)
    assert found is not None
    return found * inputs.is_direction[:, :, None].to(found.dtype) if inputs.is_ragged else found


def _traced(
    model: Model,
    plan: Plan,
    inputs: Inputs,
    cache: Cache,
    graph: Graph,
    losses_of: LossesOf,
    traced: TracedRows,
) -> Tensor:
    """The traced objectives of rows [m]."""
    trace, rows = traced.trace, traced.rows
    residual = graph.streams[plan.trace_stream(trace)]
    if trace.attention_trace_type is not AttentionTraceType.V:
        return traced_values(model.decoder, model.autoencoders, trace, residual, rows, traced.node)
    query, key, head = traced.node
    assert trace.node.layer_index is not None
    probs = cache.values[HookPoint.ATTN_QK_PROBS][trace.node.layer_index][rows, head, query, key]
    towards = _downstream_directions(model, plan, inputs, cache, graph, losses_of, traced)
    scale = model.decoder.write_scales.get(HookPoint.ATTN_QK_PROBS)
    if scale is not None:
        towards = towards / cache.values[scale][trace.node.layer_index][rows, query]
    values = traced_values(model.decoder, model.autoencoders, trace, residual, rows, traced.node, towards)
    return probs * values


def _downstream_directions(
    model: Model,
    plan: Plan,
    inputs: Inputs,
    cache: Cache,
    graph: Graph,
    losses_of: LossesOf,
    traced: TracedRows,
) -> Tensor:
    """Where traced values are projected, at their queries: downstream nodes' read directions, or the loss's.

    [m, d].
    """
    rows, query, downstream = traced.rows, traced.node[0], traced.trace.downstream
    if downstream is None:  # the loss sees one token alone
        seen, hooks = cache.final_residual[inputs.rows, inputs.loss_tokens].requires_grad_(), NO_HOOKS
        if HookPoint.RESID_LN_F_SCALE in cache.values:  # as it is in the run, where it may be set
            scale = cache.values[HookPoint.RESID_LN_F_SCALE][0][inputs.rows, inputs.loss_tokens]
            hooks = Hooks(lambda *_: wide(scale), frozenset({HookPoint.RESID_LN_F_SCALE}))
        logits = model.decoder.logits(seen, hooks)[:, None]  # [B, 1, V]
        set_logits = [one for one in _logits_of_losses(plan) if one.is_forward]
        before = set_values(logits, set_logits)
        caps = model.decoder.caps_logits
        capped = set_values(model.decoder.cap(before), set_logits) if caps else before
        (direction,) = torch.autograd.grad(losses_of(before[:, 0], capped[:, 0]).sum(), seen)
        return direction[rows] * (query == inputs.loss_tokens[rows])[:, None]
    residual = wide(graph.streams[plan.trace_stream(downstream)].detach()).requires_grad_()
    nodes = traced.downstream
    values = traced_values(model.decoder, model.autoencoders, downstream, residual, rows, nodes)
    (direction,) = torch.autograd.grad(values.sum(), residual)
    return direction[rows, query]


def _at_other_logits(
    decoder: Decoder, plan: Plan, graph: Graph, index: int, others: dict[int, Tensor]
) -> list[Tensor]:
    """What gives logits of other tokens than the loss's, which no loss sees, the gradients that are set."""
    row = plan.rows[index]
    own = [one.alone for one in logit_interventions(plan) if one.row == index]
    if not any(not one.is_forward and one.ablation.value != 0 for one in own):
        return []
    nothing = wide(graph.logits[:0]).new_zeros(1, row.n_tokens, graph.logits.shape[1])
    gradient = set_values(nothing, [one for one in own if not one.is_forward])
    gradient[0, row.loss_token] = 0
    stopped = [replace(one, ablation=replace(one.ablation, value=0.0)) for one in own if one.is_forward]
    flowing = decoder.unembed_transposed(set_values(gradient, stopped)[0])  # [T, d]
    others[index] = gradient[0]
    return [(wide(graph.final_normed[index, : row.n_tokens]) * flowing).sum()]

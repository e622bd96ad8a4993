"""The forward pass over a batch, and over the prompts that its rows are compared with.

Where nothing that is wanted needs a gradient, rows that begin alike are run as one (`shared_beginnings.py`).
Otherwise the embedding output alone requires a gradient, so the graph holds activations only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.engine.cache import Cache, Graph, widen_cache, zero_padding
from tdb_server.engine.forward_hook import CONTRIBUTION_FACTORS, ForwardHook
from tdb_server.engine.inputs import Inputs
from tdb_server.engine.interventions import set_gradients, set_values
from tdb_server.engine.objectives import Predictions
from tdb_server.engine.plan import Plan
from tdb_server.engine.planned_interventions import logits_of_losses
from tdb_server.engine.references import References
from tdb_server.engine.shared_beginnings import Beginnings, layer_of, shared_beginnings
from tdb_server.engine.spliced_model import SplicedModel
from tdb_server.engine.transfers import upload
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import INNER_HOOK_POINTS, Hooks, HookSite
from tdb_server.model.precision import wide

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


def forward(
    model: SplicedModel,
    plan: Plan,
    inputs: Inputs,
    references: References | None,
    check_cancelled: Callable[[], None],
) -> tuple[Cache, Graph]:
    """Runs the blocks, and the logits at the tokens of the rows' losses.

    Args:
        references: what was kept of the prompts that rows are compared with.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between layers of both passes.
    """
    decoder = model.decoder
    beginnings = None
    if not plan.needs_gradient:
        beginnings = shared_beginnings(plan, decoder.device)
    token_ids = inputs.token_ids if beginnings is None else inputs.token_ids[beginnings.first]
    hook = ForwardHook(plan, model, references, inputs.rules, beginnings, check_cancelled)
    altered = {hook_point for hook_point, _ in plan.interventions}
    wanted = plan.kept.values | plan.kept.gradients | altered
    if any(one.is_of_contribution for some in plan.interventions.values() for one in some):
        wanted |= {*CONTRIBUTION_FACTORS}
    if any(one.site is Site.MLP_TRANSCODER for one in model.autoencoders):
        wanted |= {HookPoint.MLP_LN_SCALE}
    hooks = Hooks(hook, INNER_HOOK_POINTS & wanted, inputs.rules)
    if wanted <= _OUTSIDE_COMPONENTS and not plan.needs_gradient and not plan.kept.sites:
        # A component that is replaced as a whole need not be computed where nobody looks inside.
        hooks = replace(hooks, computed_rows=_computed_rows(plan, beginnings, decoder.device))
    with torch.set_grad_enabled(plan.needs_gradient):
        embedding = _embedded(decoder, plan, token_ids, references).requires_grad_(plan.needs_gradient)
        residual = decoder.forward(embedding, hooks)
        normed = decoder.read_by_logits(residual, hooks)
        logits = decoder.unembed(normed[inputs.row_indices, inputs.loss_tokens])[:, None]  # [B, 1, V]
        at_token = logits_of_losses(plan)
        set_logits = [one for one in at_token if one.is_forward]
        before = set_values(logits, set_logits)
        # Some rows' objective is before the logits: the gradients that come past here are other rows'.
        of_losses = [one for one in at_token if not one.is_forward and plan.rows[one.row].stream is None]
        after = set_gradients(before, of_losses)
        capped = set_values(decoder.cap(after), set_logits) if decoder.caps_logits else after
    outputs = hook.site_outputs
    graph = Graph(hook.graph_sites, hook.streams, outputs, normed, before, after[:, 0], capped[:, 0])
    residual, normed, capped = (wide(one.detach()) for one in (residual, normed, graph.capped))
    return Cache(hook.values, residual, normed, capped, hook.read), graph


def _computed_rows(plan: Plan, beginnings: Beginnings | None, device: torch.device) -> dict[HookSite, Tensor]:
    """Where rows' tensors are replaced as a whole, the places of the others among the rows that are run."""
    found = {}
    for site, interventions in plan.interventions.items():
        replaced = {one.row for one in interventions if one.replaces_whole_tensor}
        running: Sequence[int] = range(len(plan.rows))
        if beginnings is not None:
            running = beginnings.running[layer_of(site, plan.n_layers)].tolist()
        others = np.array([place for place, row in enumerate(running) if row not in replaced], np.int64)
        if len(others) < len(running):
            found[site] = others
    return dict(zip(found, upload(list(found.values()), device), strict=True))


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


def run_references(
    model: SplicedModel, plan: Plan, inputs: Inputs, check_cancelled: Callable[[], None]
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
    if plan.divergence_targets:
        baselines, tokens = inputs.divergence_targets
        predicted = model.decoder.cap(model.decoder.unembed(graph.final_normed[baselines, tokens]))
        predictions = Predictions.of(predicted, [len(own) for own, _ in plan.divergence_targets])
    return References(cache, wide(logits), wide(model.decoder.cap(logits)), predictions)

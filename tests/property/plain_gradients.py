"""Gradients at any place of the plain model, and what nodes contribute beside baseline prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import LossConfig
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.plain_dictionaries import EMBEDDING, behind, dense_latents, read_by, unit_writes
from tests.property.plain_edits import deviation_of, loss_value
from tests.property.plain_model import Edits, PlainModel, Seen, Spot

FINAL_SCALE = (HookPoint.RESID_LN_F_SCALE, None)
Objective = Callable[[Seen], Tensor]
Numbers = dict[DerivedScalar, dict[int | None, Tensor]]
"""By derived scalar and layer, in the order of nodes' indices."""


@dataclass(frozen=True)
class PlainRun:
    """A forward pass of the plain model, and gradients of an objective at every place, after its edits."""

    seen: Seen
    gradients: Seen


def loss_objective(model: PlainModel, loss: LossConfig) -> Objective:
    return lambda seen: loss_value(loss, seen[HookPoint.LOGITS, None], model.logit_cap)


def run_with_gradients(
    model: PlainModel, token_ids: tuple[int, ...], objective: Objective, edits: Edits | None = None
) -> PlainRun:
    """With the final norm's scale held constant, as TDB runs a prompt."""
    edits = dict(edits or {})
    at_embedding, at_scale = edits.get(EMBEDDING, lambda x: x), edits.get(FINAL_SCALE, lambda x: x)
    edits[EMBEDDING] = lambda x: at_embedding(x).requires_grad_()
    edits[FINAL_SCALE] = lambda x: at_scale(x).detach()
    seen = model.run(token_ids, edits)
    spots = [spot for spot, x in seen.items() if x.requires_grad]
    found = torch.autograd.grad(objective(seen).sum(), [seen[one] for one in spots], allow_unused=True)
    gradients = {spot: torch.zeros_like(x) for spot, x in seen.items()}
    gradients |= {spot: x for spot, x in zip(spots, found, strict=True) if x is not None}
    return PlainRun({spot: x.detach() for spot, x in seen.items()}, gradients)


def mean(of_each: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(of_each)).mean(dim=0)


def contrast(baselines: Sequence[Seen], of_run: Callable[[Seen], Tensor], run: Seen) -> Tensor:
    """What is computed of a run, less its mean over the baselines' runs."""
    return of_run(run) - mean([of_run(one) for one in baselines])


def act_times_grad(model: PlainModel, run: PlainRun, baselines: Sequence[Seen]) -> Numbers:
    """Of nodes that are no latents."""

    def times(spot: Spot) -> Tensor:
        return contrast(baselines, lambda seen: seen[spot][0], run.seen) * run.gradients[spot][0]

    found: Numbers = {DerivedScalar.TOKEN_ATTRIBUTION: {None: times(EMBEDDING).sum(dim=-1, keepdim=True)}}
    for layer in range(model.n_layers):
        pairs = times((HookPoint.ATTN_QK_PROBS, layer))
        of_layer = {
            DerivedScalar.MLP_ACT_TIMES_GRAD: times((HookPoint.MLP_POST_ACT, layer)),
            DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD: pairs,
            DerivedScalar.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN: pairs.sum(dim=1),
            DerivedScalar.WHOLE_HEAD_ACT_TIMES_GRAD: times((HookPoint.ATTN_V_OUT, layer)).sum(dim=-1),
            DerivedScalar.WHOLE_MLP_ACT_TIMES_GRAD: times((HookPoint.RESID_DELTA_MLP, layer)).sum(
                dim=-1, keepdim=True
            ),
        }
        for scalar, numbers in of_layer.items():
            found.setdefault(scalar, {})[layer] = numbers
    return found


def direct_effects(
    model: PlainModel,
    run: Seen,
    baselines: Sequence[Seen],
    direction: Tensor,
    n_attentions: int | None = None,
    n_mlps: int | None = None,
) -> Numbers:
    """Of nodes that are no latents, along a direction [T, d]; zero behind so many blocks of either kind."""

    def along(of_run: Callable[[Seen], Tensor], is_seen: bool) -> Tensor:
        return contrast(baselines, of_run, run) * is_seen

    def summed(spot: Spot) -> Callable[[Seen], Tensor]:
        return lambda seen: (seen[spot][0] * direction).sum(dim=-1, keepdim=True)

    found: Numbers = {
        DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: {None: along(summed(EMBEDDING), True)}
    }
    for layer in range(model.n_layers):
        is_seen = (n_attentions is None or layer < n_attentions, n_mlps is None or layer < n_mlps)
        pairs = along(partial(effects_of_pairs, model, layer, direction), is_seen[0])
        mlp = summed((HookPoint.RESID_DELTA_MLP, layer))
        of_layer = {
            DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: pairs,
            DerivedScalar.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: pairs.sum(dim=1),
            DerivedScalar.WHOLE_HEAD_WRITE_TO_FINAL_RESIDUAL_GRAD: along(
                partial(_of_heads, model, layer, direction), is_seen[0]
            ),
            DerivedScalar.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: along(
                summed((HookPoint.RESID_DELTA_ATTN, layer)), is_seen[0]
            ),
            DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: along(
                partial(_of_neurons, model, layer, direction), is_seen[1]
            ),
            DerivedScalar.WHOLE_MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: along(mlp, is_seen[1]),
            DerivedScalar.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: along(mlp, is_seen[1]),
        }
        for scalar, numbers in of_layer.items():
            found.setdefault(scalar, {})[layer] = numbers
    return found


def effects_of_pairs(model: PlainModel, layer: int, direction: Tensor, seen: Seen) -> Tensor:
    probs = seen[HookPoint.ATTN_QK_PROBS, layer][0]
    values = model.for_heads(seen[HookPoint.ATTN_V, layer])[0]
    onto = direction * behind(model, seen, layer, "attn")
    return torch.einsum("qkh,khe,hed,qd->qkh", probs, values, model.out_weights(layer), onto)


def _of_heads(model: PlainModel, layer: int, direction: Tensor, seen: Seen) -> Tensor:
    onto = direction * behind(model, seen, layer, "attn")
    read = seen[HookPoint.ATTN_V_OUT, layer][0]
    return torch.einsum("qhe,hed,qd->qh", read, model.out_weights(layer), onto)


def _of_neurons(model: PlainModel, layer: int, direction: Tensor, seen: Seen) -> Tensor:
    onto = direction * behind(model, seen, layer, "mlp")
    return seen[HookPoint.MLP_POST_ACT, layer][0] * (onto @ model.mlp_out_weight(layer).T)


def of_the_prompt(model: PlainModel, run: Seen) -> Numbers:
    """What is measured of the prompt alone."""
    found: Numbers = {
        DerivedScalar.RESID_POST_EMBEDDING_NORM: {None: run[EMBEDDING][0].norm(dim=-1)[:, None]}
    }
    for layer in range(model.n_layers):
        out_weights = model.out_weights(layer)
        probs, neurons = run[HookPoint.ATTN_QK_PROBS, layer][0], run[HookPoint.MLP_POST_ACT, layer][0]
        values = model.for_heads(run[HookPoint.ATTN_V, layer])[0]
        written = torch.einsum("khe,hed,qd->qkhd", values, out_weights, behind(model, run, layer, "attn"))
        units = model.mlp_out_weight(layer) * behind(model, run, layer, "mlp")[:, None]
        read = torch.einsum(
            "qhe,hed,qd->qhd",
            run[HookPoint.ATTN_V_OUT, layer][0],
            out_weights,
            behind(model, run, layer, "attn"),
        )
        delta = run[HookPoint.RESID_DELTA_MLP, layer][0]
        of_layer = {
            DerivedScalar.ATTN_QK_PROBS: probs,
            DerivedScalar.MLP_POST_ACT: neurons,
            DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM: probs * written.norm(dim=-1),
            DerivedScalar.MLP_WRITE_NORM: neurons * units.norm(dim=-1),
            DerivedScalar.WHOLE_HEAD_WRITE_NORM: read.norm(dim=-1),
            DerivedScalar.WHOLE_MLP_WRITE_NORM: delta.norm(dim=-1, keepdim=True),
            DerivedScalar.WHOLE_HEAD_ONE: torch.ones(read.shape[:2]),
            DerivedScalar.WHOLE_MLP_ONE: torch.ones(len(delta), 1),
        }
        for scalar, numbers in of_layer.items():
            found.setdefault(scalar, {})[layer] = numbers.double()
    return found


@dataclass(frozen=True)
class LatentNumbers:
    """Of all latents of a layer's dictionary [T, n]."""

    activations: Tensor
    act_times_grad: Tensor
    write_norms: Tensor
    direct_effects: Tensor


def latent_numbers(
    model: PlainModel,
    dictionary: Autoencoder,
    layer: int,
    run: PlainRun,
    baselines: Sequence[Seen],
    direction: Tensor,
) -> LatentNumbers:
    """What latents contribute where none is set."""
    weights, site = dictionary.layers[layer], dictionary.site

    def latents(seen: Seen) -> Tensor:
        return dense_latents(weights, read_by(model, site, seen, layer)[0])

    def effects(seen: Seen) -> Tensor:
        writes = unit_writes(model, site, layer, weights, seen)
        return latents(seen) * torch.einsum("td,tnd->tn", direction, writes)

    gradient = run.gradients[site.hook_point, layer][0].flatten(1)
    if weights.norms_inputs:
        gradient = gradient * deviation_of(read_by(model, site, run.seen, layer)[0])
    own = latents(run.seen)
    return LatentNumbers(
        own,
        contrast(baselines, latents, run.seen) * (gradient @ weights.directions.T),
        own * unit_writes(model, site, layer, weights, run.seen).norm(dim=-1),
        contrast(baselines, effects, run.seen),
    )

"""The registry of derived scalars: how each is computed, layer by layer, and what a run must keep for it.

A recipe turns a row of a finished run into `ScalarValues`. Everything is linear in what the run kept, so a
layer's recipe is a product or two (SEMANTICS sections 1 and 4):

    act × grad      activation · d objective / d activation
    direct effect   write vector · direction of interest
    write norm      activation · ‖unit write‖

To add a derived scalar: name it in `tdb_server.domain.derived_scalar` with its axes, and give its recipe
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import PassType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import ActivationIndex
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.scalars import heads, latent_scalars, neurons
from tdb_server.scalars.cells import PAIR_PLACES
from tdb_server.scalars.latents import autoencoder_of, is_autoencoder_place
from tdb_server.scalars.objectives import latent_pre_activations, mlp_site, neuron_objectives
from tdb_server.scalars.row_run import EMBEDDING_DEPTH, RowRun, attention_depth, axes_of, mlp_depth
from tdb_server.scalars.run import Needs
from tdb_server.scalars.scalar_values import DenseScalars, ScalarValues

_N_EMBEDDINGS = 4096
"""How many embeddings go through an MLP at once: their neurons take tens of megabytes, not a gigabyte."""


@dataclass(frozen=True)
class Recipe:
    """How a derived scalar is computed, and what for.

    Attributes:
        compute: `(run, layer)`, or `(run, autoencoder, layer)` for latents, to the layer's numbers.
        values: places whose values it reads.
        gradients: places whose gradients it reads.
        reads_direction: whether it reads the direction of interest.
        reads_latents: whether it is about latents.
        reads_site_gradient: whether it reads the gradient at the autoencoder's site.
    """

    compute: Callable[..., ScalarValues]
    values: tuple[Place, ...] = ()
    gradients: tuple[Place, ...] = ()
    reads_direction: bool = False
    reads_latents: bool = False
    reads_site_gradient: bool = False


def scalar_values(
    run: RowRun, scalar: DerivedScalar, layer_index: int | None, pass_type: PassType = PassType.FORWARD
) -> ScalarValues:
    """The numbers of one derived scalar in one layer; with the backward pass, the gradients instead."""
    place = DERIVED_SCALAR_SHAPES[scalar].place
    if place is not None:
        return _read(run, scalar, place, layer_index, pass_type)
    recipe = RECIPES[scalar]
    if recipe.reads_latents:
        return recipe.compute(run, _autoencoder(run, scalar), layer_index)
    if scalar is DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP:
        return recipe.compute(run, layer_index, pass_type)
    return recipe.compute(run, layer_index)


def needs_of(scalar: DerivedScalar, pass_type: PassType, autoencoders: Sequence[Autoencoder]) -> Needs:
    """What a run must keep so that the derived scalar can be computed."""
    place = DERIVED_SCALAR_SHAPES[scalar].place
    wants_gradient = pass_type is PassType.BACKWARD
    needs = Needs()
    if place is not None and not is_autoencoder_place(place):
        needs.values.add(place)
        needs.gradients |= {place} if wants_gradient else set()
        return needs
    recipe = RECIPES.get(scalar)
    if recipe is not None:
        needs.values |= {*recipe.values, *recipe.gradients}
        needs.gradients |= (
            set(recipe.gradients) if scalar not in _GRADIENT_IF_BACKWARD or wants_gradient else set()
        )
    if place is not None or (recipe is not None and recipe.reads_latents):
        site = (
            autoencoder_of(DERIVED_SCALAR_SHAPES[scalar].node_type, autoencoders).site
            if place is None
            else (autoencoder_of(place, autoencoders).site)
        )
        needs.values.add(site.place)
        if wants_gradient or (recipe is not None and recipe.reads_site_gradient):
            needs.site_gradients.add(site)
    return needs


_GRADIENT_IF_BACKWARD = frozenset({DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP})


def reads_objective(scalar: DerivedScalar, pass_type: PassType) -> bool:
    """Whether the derived scalar is meaningless without a backward pass."""
    recipe = RECIPES.get(scalar)
    if pass_type is PassType.BACKWARD or recipe is None:
        return pass_type is PassType.BACKWARD
    return bool(
        recipe.reads_direction
        or recipe.reads_site_gradient
        or (recipe.gradients and scalar not in _GRADIENT_IF_BACKWARD)
    )


def _autoencoder(run: RowRun, scalar: DerivedScalar) -> Autoencoder:
    return autoencoder_of(DERIVED_SCALAR_SHAPES[scalar].node_type, run.autoencoders)


def _read(
    run: RowRun, scalar: DerivedScalar, place: Place, layer_index: int | None, pass_type: PassType
) -> ScalarValues:
    """A place's value, or the gradient at it."""
    is_forward = pass_type is PassType.FORWARD
    if place is Place.LOGITS:
        return _logits(run) if is_forward else _logit_gradients(run)
    if is_autoencoder_place(place):
        assert layer_index is not None
        autoencoder = autoencoder_of(place, run.autoencoders)
        if "error" in place.value:
            return latent_scalars.error(run, autoencoder, layer_index, pass_type)
        compute = latent_scalars.activation if is_forward else latent_scalars.gradient
        return compute(run, autoencoder, layer_index)
    x = run.value(place, layer_index) if is_forward else run.gradient(place, layer_index)
    is_zero_where_masked = is_forward and place is Place.ATTN_QK_PROBS
    masked = run.decoder.mask(run.n_tokens) if place in PAIR_PLACES and not is_zero_where_masked else None
    order = DERIVED_SCALAR_SHAPES[scalar].dimensions
    return DenseScalars((x,), axes_of(place), order, run.n_tokens, not_nodes=masked)


_LOGIT_AXES = DERIVED_SCALAR_SHAPES[DerivedScalar.LOGITS].dimensions


def _logits(run: RowRun) -> DenseScalars:
    """Logits at the tokens whose logits were wanted; their sums at every token."""
    tokens = run.logit_tokens
    return DenseScalars(
        (run.logits,), _LOGIT_AXES, _LOGIT_AXES, run.n_tokens, tokens, known_sum=run.logit_sums
    )


def _logit_gradients(run: RowRun) -> DenseScalars:
    tokens, gradients = run.logit_gradients
    return DenseScalars((gradients,), _LOGIT_AXES, _LOGIT_AXES, run.n_tokens, tokens)


# Whole layers and the embedding: one number per token, [T, 1]


def _per_token(run: RowRun, numbers: Tensor, tokens: Tensor | None = None) -> DenseScalars:
    axes = DERIVED_SCALAR_SHAPES[DerivedScalar.ALWAYS_ONE].dimensions
    return DenseScalars((numbers[:, None],), axes, axes, run.n_tokens, tokens)


def _norm(place: Place) -> Callable[[RowRun, int | None], ScalarValues]:
    return lambda run, layer_index: _per_token(run, run.value(place, layer_index).norm(dim=-1))


def _projection(place: Place, depth: Callable[[int], int]) -> Callable[[RowRun, int | None], ScalarValues]:
    def compute(run: RowRun, layer_index: int | None) -> ScalarValues:
        at_depth = EMBEDDING_DEPTH if layer_index is None else depth(layer_index)
        tokens, direction = run.seen_direction(at_depth)
        return _per_token(run, (run.value(place, layer_index)[tokens] * direction).sum(dim=-1), tokens)

    return compute


def _always_one(run: RowRun, layer_index: int | None) -> ScalarValues:
    return _per_token(run, torch.ones(run.n_tokens, device=run.decoder.device, dtype=run.decoder.dtype))


def _token_attribution(run: RowRun, layer_index: int | None) -> ScalarValues:
    embedding = run.value(Place.RESID_POST_EMB, None)
    return _per_token(run, (embedding * run.gradient(Place.RESID_POST_EMB, None)).sum(dim=-1))


def _previous_residual(run: RowRun, layer_index: int, pass_type: PassType) -> ScalarValues:
    spot = (Place.RESID_POST_EMB, None) if layer_index == 0 else (Place.RESID_POST_MLP, layer_index - 1)
    x = run.value(*spot) if pass_type is PassType.FORWARD else run.gradient(*spot)
    axes = axes_of(Place.RESID_POST_MLP)
    return DenseScalars((x,), axes, axes, run.n_tokens)


def _vocabulary_reads(run: RowRun, layer_index: int | None) -> ScalarValues:
    """What each vocabulary token's embedding alone gives the neurons and MLP latents that a run names [T, V].

    A backward ablation of `mlp.post_act` or of an MLP autoencoder's latents names one and a weight; the
    embedding stands for the whole residual stream before its MLP.
    """
    embedding = run.decoder.weights.token_embedding
    reads = embedding.new_zeros(run.n_tokens, len(embedding))
    for one in run.row.inference.ablations:
        if one.index.pass_type is PassType.BACKWARD and _has_reads(run, one.index.place):
            token = one.index.tensor_indices[0]
            reads[slice(None) if token is None else token] += one.value * _embedding_reads(run, one.index)
    return DenseScalars((reads,), _LOGIT_AXES, _LOGIT_AXES, run.n_tokens)


def _has_reads(run: RowRun, place: Place) -> bool:
    """Whether a place's cells are neurons or latents of the MLP's autoencoder."""
    if place is Place.ONLINE_AUTOENCODER_LATENT:
        return autoencoder_of(place, run.autoencoders).site.is_mlp
    return place in (Place.MLP_POST_ACT, Place.ONLINE_MLP_AUTOENCODER_LATENT)


def _embedding_reads(run: RowRun, index: ActivationIndex) -> Tensor:
    """What embeddings, some at a time, give one neuron or latent before its nonlinearity [V]."""
    layer_index, component = index.layer_index, index.tensor_indices[1]
    assert layer_index is not None
    assert component is not None
    found = []
    for embedding in torch.split(run.decoder.weights.token_embedding, _N_EMBEDDINGS):
        run.check_cancelled()
        which = torch.full((len(embedding),), component, device=embedding.device)
        if index.place is Place.MLP_POST_ACT:
            found.append(neuron_objectives(run.decoder, layer_index, embedding, which))
        else:
            autoencoder = autoencoder_of(index.place, run.autoencoders)
            site = mlp_site(run.decoder, autoencoder, layer_index, embedding)
            found.append(latent_pre_activations(autoencoder.layers[layer_index], site, which))
    return torch.cat(found)


def _needs_within_layer_gradient(*_: Any) -> ScalarValues:
    raise RuntimeError("attention writes to a latent are computed by scalars.attention_pairs")


_RESIDUALS = (Place.RESID_POST_EMB, Place.RESID_POST_MLP)
_WRITES = (Place.ATTN_QK_PROBS, Place.ATTN_V)

RECIPES: dict[DerivedScalar, Recipe] = {
    DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP: Recipe(_previous_residual, _RESIDUALS, _RESIDUALS),
    DerivedScalar.ALWAYS_ONE: Recipe(_always_one),
    DerivedScalar.TOKEN_ATTRIBUTION: Recipe(_token_attribution, gradients=(Place.RESID_POST_EMB,)),
    DerivedScalar.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION: Recipe(_vocabulary_reads),
    DerivedScalar.RESID_POST_EMBEDDING_NORM: Recipe(_norm(Place.RESID_POST_EMB), (Place.RESID_POST_EMB,)),
    DerivedScalar.RESID_POST_MLP_NORM: Recipe(_norm(Place.RESID_POST_MLP), (Place.RESID_POST_MLP,)),
    DerivedScalar.RESID_POST_ATTN_NORM: Recipe(_norm(Place.RESID_POST_ATTN), (Place.RESID_POST_ATTN,)),
    DerivedScalar.MLP_LAYER_WRITE_NORM: Recipe(_norm(Place.RESID_DELTA_MLP), (Place.RESID_DELTA_MLP,)),
    DerivedScalar.ATTN_LAYER_WRITE_NORM: Recipe(_norm(Place.RESID_DELTA_ATTN), (Place.RESID_DELTA_ATTN,)),
    DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD: Recipe(
        _projection(Place.RESID_POST_EMB, mlp_depth), (Place.RESID_POST_EMB,), reads_direction=True
    ),
    DerivedScalar.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD: Recipe(
        _projection(Place.RESID_POST_MLP, mlp_depth), (Place.RESID_POST_MLP,), reads_direction=True
    ),
    DerivedScalar.RESID_POST_ATTN_PROJ_TO_FINAL_RESIDUAL_GRAD: Recipe(
        _projection(Place.RESID_POST_ATTN, attention_depth), (Place.RESID_POST_ATTN,), reads_direction=True
    ),
    DerivedScalar.MLP_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: Recipe(
        _projection(Place.RESID_DELTA_MLP, mlp_depth), (Place.RESID_DELTA_MLP,), reads_direction=True
    ),
    DerivedScalar.ATTN_LAYER_WRITE_TO_FINAL_RESIDUAL_GRAD: Recipe(
        _projection(Place.RESID_DELTA_ATTN, attention_depth), (Place.RESID_DELTA_ATTN,), reads_direction=True
    ),
    DerivedScalar.MLP_WRITE_NORM: Recipe(neurons.write_norm, (Place.MLP_POST_ACT,)),
    DerivedScalar.MLP_ACT_TIMES_GRAD: Recipe(neurons.act_times_grad, gradients=(Place.MLP_POST_ACT,)),
    DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD: Recipe(
        neurons.direct_effect, (Place.MLP_POST_ACT,), reads_direction=True
    ),
    DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM: Recipe(heads.write_norm, _WRITES),
    DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD: Recipe(
        heads.act_times_grad, gradients=(Place.ATTN_QK_PROBS,)
    ),
    DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD: Recipe(
        heads.direct_effect, _WRITES, reads_direction=True
    ),
    DerivedScalar.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN: Recipe(heads.write_norm_per_token, (Place.ATTN_V_OUT,)),
    DerivedScalar.ATTN_ACT_TIMES_GRAD_PER_SEQUENCE_TOKEN: Recipe(
        heads.act_times_grad_per_token, gradients=(Place.ATTN_QK_PROBS,)
    ),
    DerivedScalar.ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD_PER_SEQUENCE_TOKEN: Recipe(
        heads.direct_effect_per_token, _WRITES, reads_direction=True
    ),
    DerivedScalar.ATTN_WRITE_SUM_HEADS: Recipe(heads.write_summed_over_heads, _WRITES),
    DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS: Recipe(_needs_within_layer_gradient, _WRITES),
}
for _prefix in ("ONLINE_AUTOENCODER", "ONLINE_MLP_AUTOENCODER", "ONLINE_ATTENTION_AUTOENCODER"):
    RECIPES[DerivedScalar[f"{_prefix}_ACT_TIMES_GRAD"]] = Recipe(
        latent_scalars.act_times_grad, reads_latents=True, reads_site_gradient=True
    )
    RECIPES[DerivedScalar[f"{_prefix}_WRITE_NORM"]] = Recipe(latent_scalars.write_norm, reads_latents=True)
    RECIPES[DerivedScalar[f"{_prefix}_WRITE_TO_FINAL_RESIDUAL_GRAD"]] = Recipe(
        latent_scalars.direct_effect, reads_latents=True, reads_direction=True
    )

"""act × grad of a node is the slope of the objective when that node's activation is scaled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, LossConfig, Trace
from torch import Tensor

from tests.property.finite_differences import (
    Objective,
    assert_same,
    slopes_of_adding,
    slopes_of_scaling,
    slopes_of_scaling_tokens,
)
from tests.property.plain_edits import (
    ablated_latents,
    ablation_edits,
    latents_of,
    loss_value,
    with_edit,
    written_by,
)
from tests.property.plain_model import Edits, PlainModel
from tests.property.requests import (
    answer,
    every_node,
    examples,
    inference,
    losses,
    numbers_of_layer,
    prompts,
)
from tests.property.small_models import (
    AUTOENCODER_KINDS,
    AUTOENCODER_SITES,
    MAIN_MODELS,
    MODELS,
    small_autoencoder,
    small_model,
)
from tests.property.trace_definitions import definition, residual_before

FINAL_SCALE = (HookPoint.RESID_LN_F_SCALE, None)
LATENT_SCALARS = {
    Site.MLP_POST_ACT: DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
    Site.RESID_DELTA_MLP: DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
    Site.RESID_DELTA_ATTN: DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ACT_TIMES_GRAD,
}


def ablate(place: HookPoint, layer_index: int, indices: tuple[int | None, ...], value: float) -> AblationSpec:
    return AblationSpec(ActivationIndex(place, layer_index, indices), value)


def holding_final_scale(model: PlainModel, token_ids: tuple[int, ...], edits: Edits) -> Edits:
    """The edits, with the final norm's scale kept at what it is now."""
    scale = model.run(token_ids, edits)[FINAL_SCALE]
    return with_edit(edits, FINAL_SCALE, lambda x: scale)


def loss_objective(model: PlainModel, loss: LossConfig) -> Objective:
    return lambda seen: loss_value(loss, seen[HookPoint.LOGITS, None], model.logit_cap)


@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(token_ids=prompts(), loss=losses(), is_ablated=st.booleans())
def test_embeddings_neurons_and_heads(
    name: str, token_ids: tuple[int, ...], loss: LossConfig, is_ablated: bool
) -> None:
    model = small_model(name)
    last, n_layers = len(token_ids) - 1, model.config.n_layers
    ablations = [
        ablate(HookPoint.MLP_POST_ACT, 0, (last, 7), 1.5),
        ablate(HookPoint.ATTN_QK_PROBS, 1, (last, None, 2), 0.3),
    ][: 2 * is_ablated]
    found = answer(
        model.engine(),
        inference(token_ids, loss, ablations=ablations),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
        neurons=every_node(DerivedScalar.MLP_ACT_TIMES_GRAD),
        heads=every_node(DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD),
    )
    edits = holding_final_scale(model.plain, token_ids, ablation_edits(model.plain, ablations))
    objective = loss_objective(model.plain, loss)

    def slopes(place: HookPoint, layer: int) -> Tensor:
        return slopes_of_scaling(model.plain, token_ids, objective, (place, layer), edits)

    spot = (HookPoint.RESID_POST_EMB, None)
    of_tokens = slopes_of_scaling_tokens(model.plain, token_ids, objective, spot, edits)[:, None]
    assert_same(of_tokens, numbers_of_layer(found.top_k("embeddings"), None, of_tokens.shape))
    for layer in range(n_layers):
        of_neurons = slopes(HookPoint.MLP_POST_ACT, layer)
        assert_same(of_neurons, numbers_of_layer(found.top_k("neurons"), layer, of_neurons.shape))
        of_heads = slopes(HookPoint.ATTN_QK_PROBS, layer)
        assert_same(of_heads, numbers_of_layer(found.top_k("heads"), layer, of_heads.shape))


@pytest.mark.parametrize(("top_k", "norms_inputs"), AUTOENCODER_KINDS)
@pytest.mark.parametrize("site", AUTOENCODER_SITES)
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(4)
@given(token_ids=prompts(), loss=losses(), is_traced=st.booleans(), is_ablated=st.booleans())
def test_latents(
    name: str,
    site: Site,
    top_k: int | None,
    norms_inputs: bool,
    token_ids: tuple[int, ...],
    loss: LossConfig,
    is_traced: bool,
    is_ablated: bool,
) -> None:
    """Towards a loss or a neuron. Gradients reach the embedding through latents that were set, too."""
    model, autoencoder, last = (
        small_model(name),
        small_autoencoder(name, site, top_k, norms_inputs=norms_inputs),
        len(token_ids) - 1,
    )
    ablations = [
        ablate(site.latent_hook_point, 0, (0, 3), 0.0),
        ablate(site.latent_hook_point, 0, (last, 9), 0.8),
        ablate(site.latent_hook_point, 1, (last, None), 0.4),
    ][: 3 * is_ablated]
    trace = Trace(NodeIndex(NodeType.MLP_NEURON, 1, (last, 5))) if is_traced else None
    found = answer(
        model.engine(autoencoder),
        inference(token_ids, None if is_traced else loss, trace, ablations),
        latents=every_node(LATENT_SCALARS[site]),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    )
    edits = ablation_edits(model.plain, ablations, [autoencoder])
    edits = holding_final_scale(model.plain, token_ids, edits)
    objective = loss_objective(model.plain, loss)
    if trace is not None:
        of_residual = definition(model.plain, trace, model.plain.run(token_ids, edits))
        objective = lambda seen: of_residual(seen[residual_before(model.plain, trace)])  # noqa: E731
    for layer, weights in autoencoder.layers.items():
        # The site before its own latents are set: a forward pass with those of earlier layers set.
        earlier = [one for one in ablations if (one.index.layer_index or 0) < layer]
        own = [one for one in ablations if one.index.layer_index == layer]
        before = model.plain.run(token_ids, ablation_edits(model.plain, earlier, [autoencoder]))
        site_values = before[site.hook_point, layer][0]
        latents = ablated_latents(latents_of(weights, site_values), own)
        token, latent = latents.nonzero(as_tuple=True)
        each = torch.zeros(len(token), *latents.shape, dtype=latents.dtype)
        each[torch.arange(len(token)), token, latent] = latents[token, latent]
        writes = written_by(weights, each, site_values)
        slopes = torch.zeros_like(latents)
        slopes[token, latent] = slopes_of_adding(
            model.plain, token_ids, objective, (site.hook_point, layer), edits, writes
        )
        assert_same(slopes, numbers_of_layer(found.top_k("latents"), layer, slopes.shape))
    spot = (HookPoint.RESID_POST_EMB, None)
    of_tokens = slopes_of_scaling_tokens(model.plain, token_ids, objective, spot, edits)[:, None]
    assert_same(of_tokens, numbers_of_layer(found.top_k("embeddings"), None, of_tokens.shape))

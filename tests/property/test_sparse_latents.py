"""Latents are kept sparsely: that finds the numbers that all latents, computed densely, have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import AblationSpec, ActivationIndex, LossConfig, Trace
from tdb_server.model.autoencoder import AutoencoderLayer
from torch import Tensor

from tests.property.finite_differences import assert_same, gradient
from tests.property.plain_edits import ablated_latents, latents_of, written_by
from tests.property.plain_model import PlainModel, Seen
from tests.property.requests import answer, every_node, examples, inference, losses, numbers_of_layer, prompts
from tests.property.small_models import (
    AUTOENCODER_KINDS,
    AUTOENCODER_SITES,
    MAIN_MODELS,
    N_LATENTS,
    small_autoencoder,
    small_model,
)
from tests.property.trace_definitions import definition, direction_of_loss, residual_before

MLP_SCALARS = {
    "latents": DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT,
    "norms": DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_NORM,
    "effects": DerivedScalar.ONLINE_MLP_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
}
ATTENTION_SCALARS = {
    "latents": DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT,
    "norms": DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM,
    "effects": DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_TO_FINAL_RESIDUAL_GRAD,
}


def scalars_of(site: Site) -> dict[str, DerivedScalar]:
    return MLP_SCALARS if site.is_mlp else ATTENTION_SCALARS


def unit_writes(model: PlainModel, seen: Seen, site: Site, layer: int, weights: AutoencoderLayer) -> Tensor:
    """What each latent adds to the residual stream per unit, at each token [T, n, d]."""
    site_values = seen[site.hook_point, layer][0]
    every_unit = torch.eye(N_LATENTS, dtype=site_values.dtype).expand(len(site_values), -1, -1)
    writes = written_by(weights, every_unit, site_values[:, None])
    if site is not Site.MLP_POST_ACT:
        return writes
    return writes @ model.mlp_out_weight(layer) * model.times_behind(seen, layer, "mlp")[:, None]


@pytest.mark.parametrize(("top_k", "norms_inputs"), [*AUTOENCODER_KINDS, (1, False), (N_LATENTS + 1, True)])
@pytest.mark.parametrize("site", AUTOENCODER_SITES)
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(2)
@given(token_ids=prompts(1, 5), loss=losses(), layers=st.sampled_from([(0, 1), (1,)]))
def test_activations_norms_and_direct_effects(
    name: str,
    site: Site,
    top_k: int | None,
    norms_inputs: bool,
    token_ids: tuple[int, ...],
    loss: LossConfig,
    layers: tuple[int, ...],
) -> None:
    model = small_model(name)
    autoencoder = small_autoencoder(name, site, top_k, layers, norms_inputs=norms_inputs)
    processing = {kind: every_node(scalar) for kind, scalar in scalars_of(site).items()}
    found = answer(model.engine(autoencoder), inference(token_ids, loss), **processing)
    seen = model.plain.run(token_ids)
    direction = direction_of_loss(model.plain, seen, loss)

    listed = {kind: found.top_k(kind) for kind in processing}
    assert {node.layer_index for node in listed["latents"].nodes} <= set(layers)
    for layer in layers:
        weights = autoencoder.layers[layer]
        site_values = seen[site.hook_point, layer][0]
        latents = latents_of(weights, site_values)
        writes = unit_writes(model.plain, seen, site, layer, weights)
        assert ((latents > 0).sum(dim=1) <= (top_k or N_LATENTS)).all()
        expected = {
            "latents": latents,
            "norms": latents * writes.norm(dim=-1),
            "effects": latents * torch.einsum("td,tnd->tn", direction, writes),
        }
        for kind, dense in expected.items():
            assert_same(dense, numbers_of_layer(listed[kind], layer, latents.shape))
    for kind, scalar in scalars_of(site).items():
        (group,) = listed[kind].groups.values()
        by_token = torch.zeros(len(token_ids), dtype=torch.float64)
        for node, number in zip(listed[kind].nodes, group.activations.tolist(), strict=True):
            by_token[node.tensor_indices[0]] += number
        assert_same(by_token, torch.from_numpy(group.sums[scalar].array))


@pytest.mark.parametrize(("top_k", "norms_inputs"), AUTOENCODER_KINDS)
@pytest.mark.parametrize("site", AUTOENCODER_SITES)
@examples(3)
@given(token_ids=prompts(2, 5), loss=losses(), value=st.sampled_from([0.0, 0.6, -0.5]))
def test_ablated_latents_count_at_their_new_value(
    site: Site,
    top_k: int | None,
    norms_inputs: bool,
    token_ids: tuple[int, ...],
    loss: LossConfig,
    value: float,
) -> None:
    """Whether they were active before or not."""
    model, autoencoder = (
        small_model("llama"),
        small_autoencoder("llama", site, top_k, norms_inputs=norms_inputs),
    )
    ablation = AblationSpec(ActivationIndex(site.latent_hook_point, 1, (1, None)), value)
    processing = {kind: every_node(scalar) for kind, scalar in scalars_of(site).items()}
    found = answer(model.engine(autoencoder), inference(token_ids, loss, ablations=[ablation]), **processing)
    seen = model.plain.run(token_ids)
    latents = latents_of(autoencoder.layers[1], seen[site.hook_point, 1][0])
    latents = ablated_latents(latents, [ablation])
    norms = unit_writes(model.plain, seen, site, 1, autoencoder.layers[1]).norm(dim=-1)
    assert_same(latents, numbers_of_layer(found.top_k("latents"), 1, latents.shape))
    assert_same(latents * norms, numbers_of_layer(found.top_k("norms"), 1, latents.shape))


@pytest.mark.parametrize("site", AUTOENCODER_SITES)
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(3)
@given(data=st.data(), token_ids=prompts(2, 5), norms_inputs=st.booleans())
def test_direct_effects_on_a_traced_neuron(
    name: str, site: Site, data: st.DataObject, token_ids: tuple[int, ...], norms_inputs: bool
) -> None:
    """Latents that write before it have one, later latents have none."""
    model, autoencoder = small_model(name), small_autoencoder(name, site, norms_inputs=norms_inputs)
    neuron = data.draw(st.integers(0, model.config.n_neurons - 1))
    trace = Trace(NodeIndex(NodeType.MLP_NEURON, 1, (len(token_ids) - 1, neuron)))
    scalar = scalars_of(site)["effects"]
    found = answer(model.engine(autoencoder), inference(token_ids, trace=trace), effects=every_node(scalar))
    seen = model.plain.run(token_ids)
    of_residual = definition(model.plain, trace, seen)
    direction = gradient(of_residual, seen[residual_before(model.plain, trace)][0])
    for layer in (0, 1):
        weights = autoencoder.layers[layer]
        site_values = seen[site.hook_point, layer][0]
        latents = latents_of(weights, site_values)
        writes = unit_writes(model.plain, seen, site, layer, weights)
        is_before = layer == 0 or (site is Site.RESID_DELTA_ATTN and not model.plain.is_parallel)
        expected = latents * torch.einsum("td,tnd->tn", direction, writes) * is_before
        assert_same(expected, numbers_of_layer(found.top_k("effects"), layer, latents.shape))


@pytest.mark.parametrize("site", AUTOENCODER_SITES)
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(3)
@given(token_ids=prompts(1, 5), loss=losses(), norms_inputs=st.booleans())
def test_setting_a_latent_to_what_it_is_changes_nothing(
    name: str, site: Site, token_ids: tuple[int, ...], loss: LossConfig, norms_inputs: bool
) -> None:
    """Spliced in with its error, an autoencoder leaves the forward pass as it was."""
    model, autoencoder = small_model(name), small_autoencoder(name, site, norms_inputs=norms_inputs)
    seen = model.plain.run(token_ids)
    latents = latents_of(autoencoder.layers[0], seen[site.hook_point, 0][0])[-1]
    ablations = [
        AblationSpec(
            ActivationIndex(site.latent_hook_point, 0, (len(token_ids) - 1, one)), latents[one].item()
        )
        for one in range(N_LATENTS)
    ]
    engine = model.engine(autoencoder)
    spliced, bare = (
        answer(engine, inference(token_ids, loss, ablations=one)).loss for one in (ablations, [])
    )
    assert spliced == pytest.approx(bare, abs=1e-6)

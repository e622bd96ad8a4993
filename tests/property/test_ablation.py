"""Ablating nodes does to the objective what it does in transformers, with the same activations replaced."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import node_ablation_spec
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import LossConfig, LossName, MultipleTopKSpec, NodeAblation
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.config import DecoderConfig

from tests.property.hooked_transformers import ablated_logits
from tests.property.plain_edits import loss_value
from tests.property.requests import answer, examples, inference, losses, numbers_of_layer
from tests.property.small_models import (
    AUTOENCODER_KINDS,
    MAIN_MODELS,
    MODELS,
    N_LATENTS,
    VOCABULARY_SIZE,
    small_autoencoder,
    small_model,
)

PROMPT = (7, 19, 2, 44, 44)
LAST = len(PROMPT) - 1
SITES = [
    (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN),
    (Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN),
    (Site.RESID_DELTA_MLP,),
]
ALL_LOGITS = MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), VOCABULARY_SIZE, LAST)


def nodes(node_type: NodeType, config: DecoderConfig) -> st.SearchStrategy[NodeIndex]:
    layers, tokens = st.integers(0, config.n_layers - 1), st.integers(0, LAST)
    if node_type is NodeType.ATTENTION_HEAD:
        heads = st.integers(0, config.n_heads - 1)
        indices = st.tuples(tokens, tokens, heads).filter(lambda one: one[1] <= one[0])
    else:
        n_components = config.n_neurons if node_type is NodeType.MLP_NEURON else N_LATENTS
        indices = st.tuples(tokens, st.integers(0, n_components - 1))
    return st.builds(NodeIndex, st.just(node_type), layers, indices)


def ablations_of(
    node_types: Sequence[NodeType], config: DecoderConfig
) -> st.SearchStrategy[list[NodeAblation]]:
    """One to six ablations, none of a cell that another sets."""
    node = st.one_of([nodes(one, config) for one in node_types])
    value = st.one_of(st.just(0.0), st.floats(-2, 2, width=32))
    ablation = st.builds(NodeAblation, node, value)
    return st.lists(ablation, min_size=1, max_size=6, unique_by=lambda one: node_ablation_spec(one).index)


def assert_ablation_agrees(
    name: str, ablations: Sequence[NodeAblation], loss: LossConfig, autoencoders: Sequence[Autoencoder] = ()
) -> None:
    model = small_model(name)
    run = inference(PROMPT, loss, ablations=[node_ablation_spec(one) for one in ablations])
    found = answer(model.engine(*autoencoders), run, logits=ALL_LOGITS)
    expected = ablated_logits(model.reference, PROMPT, ablations, autoencoders)

    limit = 1e-4 * float(expected.abs().max())
    logits = numbers_of_layer(found.top_k("logits"), None, expected.shape, GroupId.LOGITS)[LAST]
    torch.testing.assert_close(logits, expected[LAST].double(), atol=limit, rtol=0)
    assert found.loss == pytest.approx(
        loss_value(loss, expected[None].double(), model.plain.logit_cap).item(), abs=limit
    )


@pytest.mark.parametrize("name", MODELS)
@examples(8)
@given(data=st.data(), loss=losses())
def test_heads_and_neurons(name: str, data: st.DataObject, loss: LossConfig) -> None:
    config = small_model(name).config
    ablations = data.draw(ablations_of([NodeType.ATTENTION_HEAD, NodeType.MLP_NEURON], config))
    assert_ablation_agrees(name, ablations, loss)


@pytest.mark.parametrize(("top_k", "norms_inputs"), AUTOENCODER_KINDS)
@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(5)
@given(data=st.data(), loss=losses())
def test_latents_among_heads_and_neurons(
    name: str,
    sites: Sequence[Site],
    top_k: int | None,
    norms_inputs: bool,
    data: st.DataObject,
    loss: LossConfig,
) -> None:
    config = small_model(name).config
    autoencoders = [small_autoencoder(name, site, top_k, norms_inputs=norms_inputs) for site in sites]
    latents = [site.node_type for site in sites]
    others = [NodeType.ATTENTION_HEAD, NodeType.MLP_NEURON]
    ablations = data.draw(ablations_of([*latents, *others], config))
    assert_ablation_agrees(name, ablations, loss, autoencoders)


@pytest.mark.parametrize("name", MODELS)
def test_an_ablation_at_the_last_token_changes_the_objective(name: str) -> None:
    """What the tests above compare does move."""
    model, loss = small_model(name), LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    head = NodeAblation(NodeIndex(NodeType.ATTENTION_HEAD, 0, (LAST, 0, 1)), 0.0)
    with_it = answer(model.engine(), inference(PROMPT, loss, ablations=[node_ablation_spec(head)]))
    without = answer(model.engine(), inference(PROMPT, loss))
    assert with_it.loss is not None
    assert abs(with_it.loss - (without.loss or 0)) > 1e-3

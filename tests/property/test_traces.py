"""A trace's value, and the gradients from it, by their definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import node_ablation_spec
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    LossConfig,
    LossName,
    NodeAblation,
    Trace,
    ValueType,
)
from tdb_server.domain.results import ActivationsResult
from tdb_server.model.autoencoder import Autoencoder
from torch import Tensor

from tests.property.finite_differences import assert_same, slopes_of_scaling, slopes_of_scaling_tokens
from tests.property.plain_edits import ablation_edits, pre_activations_of
from tests.property.plain_model import Seen
from tests.property.requests import Answer, answer, every_node, examples, inference, numbers_of_layer
from tests.property.small_models import (
    AUTOENCODER_KINDS,
    MAIN_MODELS,
    MODELS,
    SmallModel,
    small_autoencoder,
    small_model,
)
from tests.property.trace_definitions import definition, residual_before
from tests.property.traces import QK, K, Q, V, sites_for, traces_of, value_traces

PROMPT = (51, 4, 33, 12)
LOSS = LossConfig(LossName.LOGIT_DIFF, (5, 6), (7,))
KINDS = ("neuron", "mlp latent", "attention latent", "Q", "K", "QK")
ABLATIONS = [
    NodeAblation(NodeIndex(NodeType.MLP_NEURON, 0, (1, 3)), 1.25),
    NodeAblation(NodeIndex(NodeType.ATTENTION_HEAD, 0, (2, 0, 1)), 0.0),
]


def traced(
    model: SmallModel, trace: Trace, is_ablated: bool = False, autoencoders: Sequence[Autoencoder] = ()
) -> Answer:
    needs_loss = trace.attention_trace_type is not None and trace.attention_trace_type.value == "V"
    return answer(
        model.engine(*autoencoders),
        inference(
            PROMPT,
            LOSS if needs_loss and trace.downstream is None else None,
            trace,
            [node_ablation_spec(one) for one in ABLATIONS if is_ablated],
        ),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
        neurons=every_node(DerivedScalar.MLP_ACT_TIMES_GRAD),
        heads=every_node(DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD),
    )


def assert_follows_definition(
    model: SmallModel, trace: Trace, is_ablated: bool, autoencoders: Sequence[Autoencoder] = ()
) -> None:
    """The value is the definition's, and every node's act × grad is the definition's slope, layer by layer.

    Nodes at or after the traced one have slope zero, since the definition does not see them.
    """
    found = traced(model, trace, is_ablated, autoencoders)
    ablations = [node_ablation_spec(one) for one in ABLATIONS if is_ablated]
    edits = ablation_edits(model.plain, ablations)
    base = model.plain.run(PROMPT, edits)
    spot = residual_before(model.plain, trace)
    of_residual = definition(model.plain, trace, base, autoencoders, LOSS)
    assert found.activation_value == pytest.approx(of_residual(base[spot]).item(), abs=1e-6)

    def objective(seen: Seen) -> Tensor:
        return of_residual(seen[spot])

    def slopes(place: HookPoint, layer: int) -> Tensor:
        return slopes_of_scaling(model.plain, PROMPT, objective, (place, layer), edits)

    embedding = (HookPoint.RESID_POST_EMB, None)
    of_tokens = slopes_of_scaling_tokens(model.plain, PROMPT, objective, embedding, edits)[:, None]
    assert_same(of_tokens, numbers_of_layer(found.top_k("embeddings"), None, of_tokens.shape))
    for layer in range(model.config.n_layers):
        of_neurons = slopes(HookPoint.MLP_POST_ACT, layer)
        assert_same(of_neurons, numbers_of_layer(found.top_k("neurons"), layer, of_neurons.shape))
        of_heads = slopes(HookPoint.ATTN_QK_PROBS, layer)
        assert_same(of_heads, numbers_of_layer(found.top_k("heads"), layer, of_heads.shape))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(data=st.data(), mlp_site=st.sampled_from([Site.MLP_POST_ACT, Site.RESID_DELTA_MLP]))
def test_traces(name: str, kind: str, data: st.DataObject, mlp_site: Site) -> None:
    model = small_model(name)
    top_k, norms_inputs = data.draw(st.sampled_from(AUTOENCODER_KINDS))
    autoencoders = [
        small_autoencoder(name, site, top_k, norms_inputs=norms_inputs) for site in sites_for(kind, mlp_site)
    ]
    trace = data.draw(traces_of(kind, model.config, len(PROMPT)))
    assert_follows_definition(model, trace, data.draw(st.booleans()), autoencoders)


@pytest.mark.parametrize("downstream", [None, *KINDS])
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(4)
@given(data=st.data(), mlp_site=st.sampled_from([Site.MLP_POST_ACT, Site.RESID_DELTA_MLP]))
def test_traces_through_values(
    name: str, downstream: str | None, data: st.DataObject, mlp_site: Site
) -> None:
    model = small_model(name)
    norms_inputs = data.draw(st.booleans())
    sites = sites_for(downstream, mlp_site)
    autoencoders = [small_autoencoder(name, site, norms_inputs=norms_inputs) for site in sites]
    trace = data.draw(value_traces(downstream, model.config, len(PROMPT)))
    assert_follows_definition(model, trace, data.draw(st.booleans()), autoencoders)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(data=st.data(), mlp_site=st.sampled_from([Site.MLP_POST_ACT, Site.RESID_DELTA_MLP]))
def test_the_value_is_what_the_forward_pass_computes(
    name: str, kind: str, data: st.DataObject, mlp_site: Site
) -> None:
    model = small_model(name)
    norms_inputs = data.draw(st.booleans())
    sites = sites_for(kind, mlp_site)
    autoencoders = [small_autoencoder(name, site, norms_inputs=norms_inputs) for site in sites]
    trace = replace(data.draw(traces_of(kind, model.config, len(PROMPT))), post_act=False)
    layer, indices = trace.node.layer_index, trace.node.tensor_indices
    seen = model.plain.run(PROMPT)
    if autoencoders:
        weights = autoencoders[0].layers[layer]
        site = seen[autoencoders[0].site.hook_point, layer][0]
        of_node = pre_activations_of(weights, site)[indices]
    else:
        gated = HookPoint.MLP_POST_ACT if model.config.gated else HookPoint.MLP_PRE_ACT
        place = gated if kind == "neuron" else HookPoint.ATTN_QK_LOGITS
        of_node = seen[place, layer][0][indices]
    found = traced(model, trace, autoencoders=autoencoders)
    assert found.loss is None
    assert found.activation_value == pytest.approx(of_node.item(), abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
@examples(4)
@given(data=st.data())
def test_gradients_through_query_and_key_add_up(name: str, data: st.DataObject) -> None:
    model = small_model(name)
    through_both = replace(data.draw(traces_of("QK", model.config, len(PROMPT))), post_act=False)
    q, k, both = (traced(model, replace(through_both, attention_trace_type=one)) for one in (Q, K, QK))
    assert q.activation_value == k.activation_value == both.activation_value
    for layer in range(model.config.n_layers):
        shapes = {"neurons": (model.config.n_neurons,), "heads": (len(PROMPT), model.config.n_heads)}
        for of_kind, of_token in shapes.items():
            shape = (len(PROMPT), *of_token)
            one, other, total = (numbers_of_layer(x.top_k(of_kind), layer, shape) for x in (q, k, both))
            assert_same(one + other, total, tolerance=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        LOSS,
        *(LossConfig(one, (5,)) for one in (LossName.PROBS, LossName.LOG_PROB, LossName.LOGIT_MINUS_MEAN)),
    ],
    ids=lambda one: one.name.value,
)
@pytest.mark.parametrize(
    ("place", "value", "value_type"),
    [
        (HookPoint.LOGITS, 1.7, ValueType.NUMBER),
        (HookPoint.RESID_LN_F_SCALE, 3.7, ValueType.NUMBER),
        (HookPoint.RESID_LN_F_SCALE, 0.5, ValueType.SCALE),
    ],
    ids=["logit", "scale", "share of scale"],
)
@pytest.mark.parametrize("name", MAIN_MODELS)
def test_a_value_goes_towards_the_loss_that_the_run_has(
    name: str, place: HookPoint, value: float, value_type: ValueType, loss: LossConfig
) -> None:
    """What is set behind the last layer alters the gradient that a head's write is projected onto."""
    model, (query, key, head) = small_model(name), (3, 2, 1)
    index = ActivationIndex(place, None, (query, 5 if place is HookPoint.LOGITS else 0))
    ablations = [AblationSpec(index, value, value_type)]
    trace = Trace(NodeIndex(NodeType.ATTENTION_HEAD, 0, (query, key, head)), V)
    engine, last = model.engine(), model.config.n_layers - 1
    gradient = ActivationsSpec(HookPoint.RESID_POST_MLP, (last,), (query,), PassType.BACKWARD)
    result = answer(engine, inference(PROMPT, loss, ablations=ablations), gradient=gradient).results[
        "gradient"
    ]
    assert isinstance(result, ActivationsResult)
    ((_, direction),) = result.layers
    plain, seen = model.plain, model.plain.run(PROMPT)
    value_there = plain.for_heads(seen[HookPoint.ATTN_V, 0])[0, key, head]
    write = value_there @ plain.out_weights(0)[head] * plain.times_behind(seen, 0, "attn")[query]
    expected = seen[HookPoint.ATTN_QK_PROBS, 0][0, query, key, head] * (write.numpy() @ direction.array[0])
    run = inference(PROMPT, loss, trace, ablations)
    assert answer(engine, run).activation_value == pytest.approx(float(expected), abs=1e-6)

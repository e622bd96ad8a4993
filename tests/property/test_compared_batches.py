"""Rows with baselines, circuits and values of every kind are answered in company as alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.ablation_conflicts import conflict_violations
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request, node_ablation_spec
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    Circuit,
    ComponentTotalsSpec,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MlpComponent,
    NodeAblation,
    ResidualDirection,
    ValueType,
)
from tdb_server.domain.results import ObjectiveValues
from tdb_server.engine.engine import Engine
from tdb_server.model.config import DecoderConfig
from tdb_server.workers.engine_loading import model_info

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import answers_of_calls, examples, of_every_node
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import VOCABULARY_SIZE, small_autoencoder, small_model
from tests.property.test_circuits import circuits
from tests.property.test_values import node_ablations

SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)
LATENTS = (NodeType.MLP_AUTOENCODER_LATENT, NodeType.ATTENTION_AUTOENCODER_LATENT)


@st.composite
def compared_sub_requests(
    draw: st.DrawFn, config: DecoderConfig, info: ModelInfo, n_tokens: int
) -> DebugSubRequest:
    """Any, half of them with baselines, of which several share some."""
    request = draw(debug_sub_requests(config, n_tokens))
    token = st.integers(0, VOCABULARY_SIZE - 1)
    shared = tuple((3 * i + 1) % VOCABULARY_SIZE for i in range(n_tokens))
    other = st.lists(token, min_size=n_tokens, max_size=n_tokens).map(tuple)
    baselines = tuple(draw(st.lists(st.just(shared) | other, max_size=2)))
    ablations: list[NodeAblation] = []
    for one in draw(node_ablations(config, n_tokens, LATENTS)):
        if one.value_type is ValueType.BASELINE and not baselines:
            continue
        specs = [("", node_ablation_spec(other)) for other in (*ablations, one)]
        if not list(conflict_violations(specs, info)):
            ablations.append(one)
    circuit = None
    if request.upstream_trace is None and draw(st.booleans()):
        circuit = draw(circuits(config, n_tokens, LATENTS))
    return replace(
        request,
        mlp_component=draw(st.sampled_from(MLP_COMPONENTS)),
        attention_component=draw(st.sampled_from(AttentionComponent)),
        node_ablations=tuple(ablations) if draw(st.booleans()) else (),
        hide_early_layers_when_ablating=False,
        baselines=baselines,
        circuit=circuit,
    )


MLP_COMPONENTS = (MlpComponent.NEURON, MlpComponent.AUTOENCODER_LATENT, MlpComponent.WHOLE_MLP)
Batch = list[list[InferenceSubRequest]]


@st.composite
def compared_batches(draw: st.DrawFn, config: DecoderConfig, info: ModelInfo) -> Batch:
    found = []
    for n_tokens in draw(st.lists(st.integers(1, 6), min_size=2, max_size=3)):
        call = draw(st.lists(compared_sub_requests(config, info, n_tokens), min_size=1, max_size=3))
        first = call[0]
        same = {"mlp_component": first.mlp_component, "attention_component": first.attention_component}
        runs = [inference_sub_request(replace(one, **same)) for one in call]  # type: ignore[arg-type]
        found.append([of_every_node(one) for one in runs] if draw(st.booleans()) else runs)
    return found


def engine_of(name: str, dtype: torch.dtype) -> Engine:
    return small_model(name, dtype).engine(*(small_autoencoder(name, site, dtype=dtype) for site in SITES))


def circuits_of(engine: Engine, calls: Batch) -> dict[tuple[int, int], list[float]]:
    batch = [Call(str(number), tuple(call)) for number, call in enumerate(calls)]
    return {
        (int(call_id), event.sub_request_index): [
            event.circuit.objective,
            event.circuit.of_prompt,
            event.circuit.of_baseline,
        ]
        for call_id, event in engine.run(batch, lambda _: False)
        if isinstance(event, ObjectiveValues) and event.circuit is not None
    }


@pytest.mark.parametrize("has_circuit_too", [False, True])
def test_circuits_beside_losses_along_directions(has_circuit_too: bool) -> None:
    """What the one needs of the prompts that it is compared with, the other does not."""
    engine = engine_of("gpt2", torch.float64)
    vector = tuple(0.1 * one for one in range(small_model("gpt2").config.d_model))
    direction = ResidualDirection(HookPoint.RESID_POST_MLP, 1, vector)
    of_logits = LossConfig(LossName.LOGIT_DIFF, (3,), (5,))
    along = LossConfig(LossName.DIRECTION, direction=direction)
    circuit = Circuit(frozenset({NodeType.WHOLE_MLP}), ())
    runs = [
        InferenceSpec((1, 2, 3), of_logits, baselines=((3, 2, 1),), circuit=circuit),
        InferenceSpec((4, 2, 6), along, baselines=((3, 2, 1),), circuit=circuit if has_circuit_too else None),
    ]
    effects = ComponentTotalsSpec((DerivedScalar.MLP_ACT_TIMES_GRAD,))
    calls = [[InferenceSubRequest(one, {"totals": effects})] for one in runs]
    together = circuits_of(engine, calls)
    assert len(together) == 1 + has_circuit_too
    for number, _ in together:
        alone = circuits_of(engine, [calls[number]])[0, 0]
        np.testing.assert_allclose(together[number, 0], alone, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox", "olmo2"])
@examples(2)
@given(data=st.data())
def test_alone_and_in_a_batch(name: str, data: st.DataObject) -> None:
    engine = engine_of(name, torch.float64)
    info = model_info("small", "d", "float64", engine)
    batch = data.draw(compared_batches(small_model(name).config, info))
    together = answers_of_calls(engine, batch)
    of_circuits = circuits_of(engine, batch)
    for number, (call, in_batch) in enumerate(zip(batch, together, strict=True)):
        for index, (sub_request, other) in enumerate(zip(call, in_batch, strict=True)):
            ((alone,),) = answers_of_calls(engine, [[sub_request]])
            assert_same_answers(alone, other, 1e-9, Nodes.SUBSET)
            values = circuits_of(engine, [[sub_request]]).get((0, 0))
            assert (values is None) == ((number, index) not in of_circuits)
            if values is not None:
                np.testing.assert_allclose(values, of_circuits[number, index], atol=1e-9)

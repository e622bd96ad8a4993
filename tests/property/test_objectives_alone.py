"""Objectives that are wanted alone take no backward pass, and rows that begin alike are run as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ValueType,
)
from tdb_server.engine.engine import Engine
from tdb_server.engine.plan import Plan, plan_batch
from tdb_server.model.config import DecoderConfig

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import answers_of_calls, every_node, examples
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import TOP_K, small_autoencoder, small_model
from tests.property.test_circuits import circuits

MODELS = ("gpt2-deep-untied", "gemma2", "gpt_neox")
SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)
FORWARD = (DerivedScalar.MLP_POST_ACT, DerivedScalar.ATTN_QK_PROBS, DerivedScalar.RESID_POST_EMBEDDING)
SET_AT = (
    HookPoint.MLP_POST_ACT,
    HookPoint.ATTN_V_OUT,
    HookPoint.RESID_DELTA_MLP,
    HookPoint.ONLINE_MLP_AUTOENCODER_LATENT,
)
LOSS = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))


@pytest.mark.parametrize("name", MODELS)
@examples(5)
@given(data=st.data())
def test_they_are_those_of_a_run_with_a_backward_pass(name: str, data: st.DataObject) -> None:
    """Of several rows of few prompts, with anything ablated or traced; with what forward passes give, too."""
    model = small_model(name)
    top_k = data.draw(st.sampled_from([None, TOP_K]))
    engine = model.engine(*(small_autoencoder(name, site, top_k) for site in SITES))
    prompts = [(3, 9, 27, 41), (3, 9, 27, 12)]
    forward, latents = every_node(*FORWARD), every_node(DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT)
    wanted = data.draw(st.sampled_from([{}, {"nodes": forward, "latents": latents}]))
    call = [
        replace(
            inference_sub_request(data.draw(debug_sub_requests(model.config, 4))).inference,
            token_ids=data.draw(st.sampled_from(prompts)),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    other_length = replace(call[0], token_ids=(5, 8), loss=LOSS, trace=None, ablations=())
    alone = [[InferenceSubRequest(run, wanted) for run in one] for one in (call, [other_length])]
    assert_as_with_a_backward_pass(engine, alone)


def assert_as_with_a_backward_pass(engine: Engine, calls: list[list[InferenceSubRequest]]) -> None:
    """Calls in one batch, against each of their rows alone, which shares nothing and computes everything."""
    assert not plan_of(calls).needs_gradient
    found = [one for own in answers_of_calls(engine, calls) for one in own]
    for one, sub_request in zip(found, [one for call in calls for one in call], strict=True):
        more = {"more": every_node(DerivedScalar.TOKEN_ATTRIBUTION)}
        with_gradient = [replace(sub_request, processing=sub_request.processing | more)]
        assert plan_of([with_gradient]).needs_gradient
        (own,) = answers_of_calls(engine, [with_gradient])[0]
        del own.results["more"]
        assert_same_answers(one, own, 1e-12, Nodes.NOT_ZERO)


def plan_of(calls: list[list[InferenceSubRequest]]) -> Plan:
    model = small_model("gpt2")
    autoencoders = [small_autoencoder("gpt2", site) for site in SITES]
    decoder = model.decoder
    of_calls = [Call("", tuple(one)) for one in calls]
    return plan_batch(of_calls, autoencoders, decoder.absent_hook_points, n_layers=len(decoder.blocks))


@st.composite
def runs_that_begin_alike(
    draw: st.DrawFn, config: DecoderConfig, latents: Sequence[NodeType]
) -> list[InferenceSpec]:
    """Of two prompts, with some of few ablations, and with a circuit of which a node may be left out."""
    baselines = draw(st.sampled_from([(), ((3, 7, 5, 1),), ((3, 7, 5, 1), (2, 4, 6, 8))]))
    kinds = [ValueType.NUMBER, ValueType.SCALE, ValueType.ADD, *([ValueType.BASELINE] if baselines else [])]
    layers, tokens = st.integers(0, config.n_layers - 1), st.integers(0, 3)
    pool = []
    for _ in range(3):
        hook_point = draw(st.sampled_from(SET_AT))
        cells = draw(st.sampled_from([(draw(tokens), 1, None), (None, None, None)]))
        index = ActivationIndex(hook_point, draw(layers), cells[: len(hook_point.dimensions)])
        pool.append(AblationSpec(index, 1.5, draw(st.sampled_from(kinds))))
    if baselines:
        query = draw(tokens)
        index = ActivationIndex(HookPoint.ATTN_V_OUT, draw(layers), (query, 1, None))
        key = draw(st.integers(0, query))
        pool.append(AblationSpec(index, 0.0, ValueType.BASELINE, attended_to_token=key))
    whole = draw(circuits(config, 4, latents))
    left_out = st.sampled_from([None, *whole.nodes])
    runs = []
    for _ in range(draw(st.integers(2, 6))):
        without = draw(left_out)
        of_run = replace(whole, nodes=tuple(one for one in whole.nodes if one != without))
        prompt = draw(st.sampled_from([(3, 9, 27, 41), (3, 9, 27, 12)]))
        ablations = draw(st.sampled_from([(), tuple(pool[:1]), tuple(pool[1:]), tuple(pool)]))
        own = draw(st.sampled_from([of_run, of_run, None]))
        runs.append(InferenceSpec(prompt, LOSS, ablations=ablations, baselines=baselines, circuit=own))
    return runs


@pytest.mark.parametrize("name", MODELS)
@examples(10)
@given(data=st.data())
def test_so_are_those_of_rows_that_share_beginnings(name: str, data: st.DataObject) -> None:
    model = small_model(name)
    engine = model.engine(*(small_autoencoder(name, site) for site in SITES))
    forward, latents = every_node(*FORWARD), every_node(DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT)
    wanted = data.draw(st.sampled_from([{}, {"nodes": forward, "latents": latents}]))
    drawn = data.draw(runs_that_begin_alike(model.config, [site.node_type for site in SITES]))
    assert_as_with_a_backward_pass(engine, [[InferenceSubRequest(run, wanted) for run in drawn]])

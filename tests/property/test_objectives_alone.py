"""Objectives that are wanted alone take no backward pass, and rows that begin alike are run as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
)
from tdb_server.engine.plan import Plan, plan_batch
from tdb_server.engine.shared_beginnings import shared_beginnings

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import answers_of_calls, every_node, examples
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import TOP_K, small_autoencoder, small_model

MODELS = ("gpt2-deep-untied", "gemma2", "gpt_neox")
SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)
FORWARD = (DerivedScalar.MLP_POST_ACT, DerivedScalar.ATTN_QK_PROBS, DerivedScalar.RESID_POST_EMBEDDING)
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
    assert not plan_of(alone).needs_gradient
    with_gradient = [
        [replace(one, processing=one.processing | {"more": every_node(DerivedScalar.TOKEN_ATTRIBUTION)})]
        for one in (alone[0] + alone[1])
    ]
    assert plan_of(with_gradient).needs_gradient
    found = [one for own in answers_of_calls(engine, alone) for one in own]
    for one, sub_request in zip(found, with_gradient, strict=True):
        (own,) = answers_of_calls(engine, [sub_request])[0]
        del own.results["more"]
        assert_same_answers(one, own, 1e-12, Nodes.NOT_ZERO)


def plan_of(calls: list[list[InferenceSubRequest]]) -> Plan:
    model = small_model("gpt2")
    autoencoders = [small_autoencoder("gpt2", site) for site in SITES]
    decoder = model.decoder
    of_calls = [Call("", tuple(one)) for one in calls]
    return plan_batch(of_calls, autoencoders, decoder.absent_hook_points, n_layers=len(decoder.blocks))


def test_rows_are_run_from_the_layer_on_in_which_they_are_altered() -> None:
    runs = [set_at(HookPoint.MLP_POST_ACT, layer) for layer in (2, 0)]
    runs += [InferenceSpec((1, 2), LOSS), set_at(HookPoint.LOGITS, None), InferenceSpec((7, 7), LOSS)]
    found = shared_beginnings(runs, 3, torch.device("cpu"))
    assert found is not None
    assert [places.tolist() for places in found.places] == [
        [1, 0, 1, 1, 2],
        [1, 0, 1, 1, 2],
        [0, 1, 2, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    assert found.first.tolist() == [1, 2, 4]
    assert {layer: rows.tolist() for layer, rows in found.parting.items()} == {
        1: [1, 0, 1, 2],
        2: [0, 1, 2, 2, 3],
    }


def test_rows_of_different_prompts_share_nothing() -> None:
    runs = [InferenceSpec((1, 2), LOSS), InferenceSpec((2, 1), LOSS)]
    assert shared_beginnings(runs, 3, torch.device("cpu")) is None
    embedding = set_at(HookPoint.RESID_POST_EMB, None)
    assert shared_beginnings([embedding, embedding], 3, torch.device("cpu")) is None


def set_at(hook_point: HookPoint, layer_index: int | None) -> InferenceSpec:
    index = ActivationIndex(hook_point, layer_index, (0, 0))
    return InferenceSpec((1, 2), LOSS, None, (AblationSpec(index, 0.5),))

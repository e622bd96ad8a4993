"""Answers do not depend on the other calls of a batch, nor on the other sub-requests of a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DebugSubRequest,
    InferenceSubRequest,
    LossConfig,
    LossName,
    Trace,
)
from tdb_server.engine.engine import Engine
from tdb_server.model.config import DecoderConfig

from tests.property.debug_sub_requests import debug_sub_requests
from tests.property.requests import (
    Answer,
    answers_of_calls,
    every_node,
    examples,
    inference,
    of_every_node,
)
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import MAIN_MODELS, MODELS, TOP_K, small_autoencoder, small_model

SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)
LATENT_HOOK_POINTS = tuple(site.latent_hook_point for site in SITES)
Batch = list[list[DebugSubRequest]]


@st.composite
def batches(draw: st.DrawFn, config: DecoderConfig) -> Batch:
    """Two or three calls of different lengths, each of one to three sub-requests for the same components."""
    found = []
    for n_tokens in draw(st.lists(st.integers(1, 6), min_size=2, max_size=3, unique=True)):
        call = draw(st.lists(debug_sub_requests(config, n_tokens), min_size=1, max_size=3))
        first = call[0]
        found.append(
            [
                replace(one, mlp_component=first.mlp_component, attention_component=first.attention_component)
                for one in call
            ]
        )
    return found


def engine_of(name: str, top_k: int | None, dtype: torch.dtype) -> Engine:
    autoencoders = [small_autoencoder(name, site, top_k, dtype=dtype) for site in SITES]
    return small_model(name, dtype).engine(*autoencoders)


def run(engine: Engine, batch: Sequence[Sequence[DebugSubRequest]]) -> list[list[Answer]]:
    return answers_of_calls(engine, [[inference_sub_request(one) for one in call] for call in batch])


@pytest.mark.parametrize("top_k", [None, TOP_K])
@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(8)
@given(data=st.data())
def test_a_call_alone_and_in_a_batch(name: str, top_k: int | None, data: st.DataObject) -> None:
    """In float64 nothing but an exact tie could change a ranking: the lists must be the same too."""
    engine = engine_of(name, top_k, torch.float64)
    batch = data.draw(batches(small_model(name).config))
    for call, in_batch in zip(batch, run(engine, batch), strict=True):
        (alone,) = run(engine, [call])
        for one, other in zip(alone, in_batch, strict=True):
            assert_same_answers(one, other, 1e-9, Nodes.EQUAL)


@pytest.mark.parametrize("name", [one for one in MODELS if one not in MAIN_MODELS])
@examples(2)
@given(data=st.data())
def test_families_in_one_batch(name: str, data: st.DataObject) -> None:
    """The same for every other kind of decoder."""
    engine, batch = engine_of(name, None, torch.float64), data.draw(batches(small_model(name).config))
    for call, in_batch in zip(batch, run(engine, batch), strict=True):
        (alone,) = run(engine, [call])
        for one, other in zip(alone, in_batch, strict=True):
            assert_same_answers(one, other, 1e-9, Nodes.EQUAL)


@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(6)
@given(data=st.data())
def test_a_sub_request_alone_and_in_a_batch(name: str, data: st.DataObject) -> None:
    """In company it is answered for the nodes of its call's other sub-requests, too, if none hides layers."""
    engine = engine_of(name, None, torch.float64)
    batch = [
        [replace(one, hide_early_layers_when_ablating=False) for one in call]
        for call in data.draw(batches(small_model(name).config))
    ]
    for call, in_batch in zip(batch, run(engine, batch), strict=True):
        for sub_request, other in zip(call, in_batch, strict=True):
            ((one,),) = run(engine, [[sub_request]])
            assert_same_answers(one, other, 1e-9, Nodes.SUBSET)


@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(4)
@given(data=st.data())
def test_in_float32(name: str, data: st.DataObject) -> None:
    """As models are served. All nodes are asked for, since rounding may reorder nodes that nearly tie.

    Gradients that nearly cancel keep few digits: of these examples the worst differ by 1e-4.
    """
    engine = engine_of(name, None, torch.float32)
    batch = data.draw(batches(small_model(name).config))
    calls = [[of_every_node(inference_sub_request(one)) for one in call] for call in batch]
    for call, in_batch in zip(calls, answers_of_calls(engine, calls), strict=True):
        (alone,) = answers_of_calls(engine, [call])
        for one, other in zip(alone, in_batch, strict=True):
            assert_same_answers(one, other, 5e-4, Nodes.NOT_ZERO)


@pytest.mark.parametrize(
    ("place", "layer"),
    [
        (HookPoint.LOGITS, None),
        *product((HookPoint.MLP_POST_ACT, HookPoint.RESID_DELTA_ATTN, *LATENT_HOOK_POINTS), (0, 1)),
    ],
)
def test_a_gradient_set_behind_a_traced_node(place: HookPoint, layer: int | None) -> None:
    """The trace does not see it, whether other calls' gradients come past there or not."""
    engine = engine_of("gpt2", None, torch.float64)
    trace = Trace(NodeIndex(NodeType.MLP_NEURON, 0, (2, 3)))
    behind = AblationSpec(ActivationIndex(place, layer, (3, 5), PassType.BACKWARD), 2.0)
    embeddings = {"embeddings": every_node(DerivedScalar.TOKEN_ATTRIBUTION)}
    call = [InferenceSubRequest(inference((3, 4, 5, 6), trace=trace, ablations=[behind]), embeddings)]
    loss = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
    other = [InferenceSubRequest(inference((8, 9, 10, 11, 12), loss), embeddings)]
    ((alone,),) = answers_of_calls(engine, [call])
    (in_batch,), _ = answers_of_calls(engine, [call, other])
    assert_same_answers(alone, in_batch, 1e-9, Nodes.EQUAL)

"""A call's answers do not depend on what else is in the batch, nor a sub-request's on what else is in the call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import GroupId
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    DebugSubRequest,
    MlpComponent,
    MultipleTopKSpec,
    Trace,
)
from tdb_server.domain.results import (
    MultipleTopKResult,
    ProcessingResult,
    ScoredTokensResult,
    TokenPairAttributionResult,
)
from tdb_server.model.config import DecoderConfig
from tdb_server.scalars.engine import Engine

from tests.property.requests import Answer, answers_of_calls, examples
from tests.property.small_models import (
    MAIN_MODELS,
    TOP_K,
    VOCABULARY_SIZE,
    small_autoencoder,
    small_model,
)
from tests.property.traces import nodes_to_ablate, traces_of, value_traces

SITES = [Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN]
KINDS = ("neuron", "mlp latent", "attention latent", "Q", "K", "QK")


@st.composite
def sub_requests(draw: st.DrawFn, config: DecoderConfig, n_tokens: int) -> DebugSubRequest:
    """Any TDB sub-request: components, ablations of nodes of every type, and a loss or a trace of any kind."""
    tokens = st.integers(0, VOCABULARY_SIZE - 1)
    return DebugSubRequest(
        token_ids=draw(st.tuples(*[tokens] * n_tokens)),
        target_tokens=(draw(tokens),),
        distractor_tokens=draw(st.just(()) | st.tuples(tokens)),
        mlp_component=draw(st.sampled_from(MlpComponent)),
        attention_component=draw(st.sampled_from(AttentionComponent)),
        top_and_bottom_k=draw(st.integers(1, 8)),
        hide_early_layers_when_ablating=draw(st.booleans()),
        node_ablations=tuple(draw(nodes_to_ablate(config, n_tokens))),
        upstream_trace=draw(st.none() | _traces(config, n_tokens)),
    )


def _traces(config: DecoderConfig, n_tokens: int) -> st.SearchStrategy[Trace]:
    return st.one_of(
        st.sampled_from(KINDS).flatmap(lambda one: traces_of(one, config, n_tokens)),
        st.sampled_from([None, *KINDS]).flatmap(lambda one: value_traces(one, config, n_tokens)),
    )


@st.composite
def calls(draw: st.DrawFn, config: DecoderConfig) -> list[list[DebugSubRequest]]:
    """Two or three calls of one or two sub-requests; the prompts of a call have one length."""
    found = []
    for n_tokens in draw(st.lists(st.integers(1, 6), min_size=2, max_size=3, unique=True)):
        found.append(draw(st.lists(sub_requests(config, n_tokens), min_size=1, max_size=2)))
        # Sub-requests of a call list the same kinds of node.
        first = found[-1][0]
        found[-1] = [
            DebugSubRequest(
                one.token_ids,
                one.target_tokens,
                one.distractor_tokens,
                first.mlp_component,
                first.attention_component,
                first.top_and_bottom_k,
                one.hide_early_layers_when_ablating,
                one.node_ablations,
                one.upstream_trace,
            )
            for one in found[-1]
        ]
    return found


def run(engine: Engine, batch: Sequence[Sequence[DebugSubRequest]]) -> list[list[Answer]]:
    return answers_of_calls(engine, [[inference_sub_request(one) for one in call] for call in batch])


@pytest.mark.parametrize("name", MAIN_MODELS)
@examples(12)
@given(data=st.data())
def test_alone_and_in_company(name: str, data: st.DataObject) -> None:
    """In float64, where nothing but an exact tie could change a ranking: everything, nodes and lists too."""
    model = small_model(name)
    top_k = data.draw(st.sampled_from([None, TOP_K]))
    engine = model.engine(*(small_autoencoder(name, site, top_k) for site in SITES))
    batch = data.draw(calls(model.config))
    for call, together in zip(batch, run(engine, batch), strict=True):
        (alone,) = run(engine, [call])
        for one, other in zip(alone, together, strict=True):
            assert_equal_answers(one, other, 1e-9)

"""A run keeps what its results are computed from, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import (
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
)
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.scalars.needs import needs_of_calls
from tdb_server.scalars.run import Needs

NOTHING = AutoencoderLayer(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1))
AUTOENCODERS = [Autoencoder(site, {0: NOTHING}) for site in (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)]
RESIDUALS = {Place.RESID_POST_EMB, Place.RESID_POST_MLP}


def needs(
    *specs: ProcessingSpec, inference: InferenceSpec | None = None, nodes: Sequence[DerivedScalar] = ()
) -> Needs:
    """Of one sub-request with these specs, whose ranking is called "nodes"."""
    processing = {str(index): spec for index, spec in enumerate(specs)}
    if nodes:
        processing["nodes"] = top_k(*nodes)
    sub_request = InferenceSubRequest(inference or InferenceSpec((1, 2)), processing)
    return needs_of_calls([Call("", (sub_request,))], AUTOENCODERS)


def top_k(*scalars: DerivedScalar, pass_type: PassType = PassType.FORWARD) -> MultipleTopKSpec:
    return MultipleTopKSpec(((GroupId.SINGLETON, scalars),), 3, pass_type=pass_type)


@pytest.mark.parametrize(
    ("scalar", "values", "gradients", "sites"),
    [
        (DerivedScalar.ALWAYS_ONE, set(), set(), set()),
        (DerivedScalar.MLP_POST_ACT, {Place.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.MLP_WRITE_NORM, {Place.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.MLP_ACT_TIMES_GRAD, {Place.MLP_POST_ACT}, {Place.MLP_POST_ACT}, set()),
        (DerivedScalar.TOKEN_ATTRIBUTION, {Place.RESID_POST_EMB}, {Place.RESID_POST_EMB}, set()),
        (
            DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
            {Place.ATTN_QK_PROBS, Place.ATTN_V},
            set(),
            set(),
        ),
        (DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP, RESIDUALS, set(), set()),
        (DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT, {Place.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM, {Place.RESID_DELTA_ATTN}, set(), set()),
        (
            DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
            {Place.MLP_POST_ACT},
            set(),
            {Site.MLP_POST_ACT},
        ),
    ],
)
def test_of_a_ranking(
    scalar: DerivedScalar, values: set[Place], gradients: set[Place], sites: set[Site]
) -> None:
    assert needs(top_k(scalar)) == Needs(values, gradients, sites)


@pytest.mark.parametrize(
    ("scalar", "values", "gradients", "sites"),
    [
        (DerivedScalar.ATTN_QUERY, {Place.ATTN_Q}, {Place.ATTN_Q}, set()),
        (DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP, RESIDUALS, RESIDUALS, set()),
        (
            DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ERROR,
            {Place.RESID_DELTA_ATTN},
            set(),
            {Site.RESID_DELTA_ATTN},
        ),
    ],
)
def test_of_a_backward_pass(
    scalar: DerivedScalar, values: set[Place], gradients: set[Place], sites: set[Site]
) -> None:
    wanted = Needs(values, gradients, sites)
    assert needs(top_k(scalar, pass_type=PassType.BACKWARD)) == wanted
    assert needs(DerivedScalarsSpec(scalar, 0, 0, PassType.BACKWARD)) == wanted


@pytest.mark.parametrize(
    ("scoring", "nodes", "values"),
    [
        (
            TokenScoringType.UPVOTED_OUTPUT_TOKENS,
            DerivedScalar.TOKEN_ATTRIBUTION,
            {Place.RESID_POST_EMB},
        ),
        (
            TokenScoringType.UPVOTED_OUTPUT_TOKENS,
            DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
            {Place.ATTN_QK_PROBS, Place.ATTN_V, Place.ATTN_V_OUT},
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP,
            DerivedScalar.MLP_ACT_TIMES_GRAD,
            {Place.MLP_POST_ACT, Place.RESID_POST_ATTN},
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
            DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
            {Place.ATTN_QK_PROBS, Place.ATTN_Q, Place.ATTN_K} | RESIDUALS,
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
            DerivedScalar.MLP_ACT_TIMES_GRAD,
            {Place.MLP_POST_ACT},
        ),
    ],
)
def test_of_scored_tokens(scoring: TokenScoringType, nodes: DerivedScalar, values: set[Place]) -> None:
    """They need what the nodes they score need, and no more gradients."""
    alone, with_tokens = needs(nodes=[nodes]), needs(ScoredTokensSpec("nodes", scoring), nodes=[nodes])
    assert with_tokens == Needs(values, alone.gradients, alone.site_gradients)


def test_of_token_pairs() -> None:
    """Attention is kept where the nodes are latents."""
    latents, neurons = DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT, DerivedScalar.MLP_POST_ACT
    pairs = TokenPairAttributionSpec("nodes")
    attention = {Place.ATTN_QK_PROBS, Place.ATTN_V}
    assert needs(pairs, nodes=[latents]).values == {Place.RESID_DELTA_ATTN} | attention
    assert needs(pairs, nodes=[neurons]).values == {Place.MLP_POST_ACT}


def test_of_writes_to_a_latent() -> None:
    latent = ActivationIndex(Place.ONLINE_ATTENTION_AUTOENCODER_LATENT, 0, (None, 0))
    scalar = DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
    inference = InferenceSpec((1, 2), within_layer_gradient=latent)
    found = needs(DerivedAttentionScalarsSpec(scalar, 0, 0), inference=inference)
    assert found == Needs({Place.ATTN_QK_PROBS, Place.ATTN_V, Place.RESID_DELTA_ATTN}, set(), set())


def test_of_a_batch_are_those_of_all_calls() -> None:
    calls = [
        Call(str(scalar), (InferenceSubRequest(InferenceSpec((1,)), {"nodes": top_k(scalar)}),))
        for scalar in (DerivedScalar.MLP_ACT_TIMES_GRAD, DerivedScalar.ATTN_QK_PROBS)
    ]
    wanted = Needs({Place.MLP_POST_ACT, Place.ATTN_QK_PROBS}, {Place.MLP_POST_ACT}, set())
    assert needs_of_calls(calls, AUTOENCODERS) == wanted

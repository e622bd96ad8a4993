"""The plan of a batch: what is kept and nothing more, which rows stand together, where directions are."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import pytest
import torch
from tdb_server.domain.call import Call
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionTraceType,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
)
from tdb_server.engine.plan import Plan, plan_batch
from tdb_server.engine.plan_groups import NodeRanking, Summing
from tdb_server.engine.plan_rows import Row
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer

NOTHING = AutoencoderLayer(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1))
AUTOENCODERS = [Autoencoder(site, {0: NOTHING}) for site in (Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN)]
RESIDUALS = {HookPoint.RESID_POST_EMB, HookPoint.RESID_POST_MLP}


@dataclass(frozen=True)
class Kept:
    """What a plan keeps: hook points, hook points' gradients, and sites' gradients behind the splice."""

    values: AbstractSet[HookPoint]
    gradients: AbstractSet[HookPoint]
    site_gradients: AbstractSet[Site]


def kept_by(plan: Plan) -> Kept:
    return Kept(plan.kept.values, plan.kept.gradients, plan.kept.site_gradients)


def kept_for(
    *specs: ProcessingSpec, inference: InferenceSpec | None = None, nodes: Sequence[DerivedScalar] = ()
) -> Kept:
    """By one sub-request with these specs, whose ranking is called "nodes"."""
    processing = {str(index): spec for index, spec in enumerate(specs)}
    if nodes:
        processing["nodes"] = top_k(*nodes)
    sub_request = InferenceSubRequest(inference or InferenceSpec((1, 2)), processing)
    return kept_by(plan_batch([Call("", (sub_request,))], AUTOENCODERS, n_layers=2))


def top_k(*scalars: DerivedScalar, pass_type: PassType = PassType.FORWARD) -> MultipleTopKSpec:
    return MultipleTopKSpec(((GroupId.SINGLETON, scalars),), 3, pass_type=pass_type)


@pytest.mark.parametrize(
    ("scalar", "values", "gradients", "sites"),
    [
        (DerivedScalar.ALWAYS_ONE, set(), set(), set()),
        (DerivedScalar.MLP_POST_ACT, {HookPoint.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.MLP_WRITE_NORM, {HookPoint.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.MLP_ACT_TIMES_GRAD, {HookPoint.MLP_POST_ACT}, {HookPoint.MLP_POST_ACT}, set()),
        (DerivedScalar.TOKEN_ATTRIBUTION, {HookPoint.RESID_POST_EMB}, {HookPoint.RESID_POST_EMB}, set()),
        (
            DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
            {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V},
            set(),
            set(),
        ),
        (DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP, RESIDUALS, set(), set()),
        (DerivedScalar.ONLINE_MLP_AUTOENCODER_LATENT, {HookPoint.MLP_POST_ACT}, set(), set()),
        (DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_WRITE_NORM, {HookPoint.RESID_DELTA_ATTN}, set(), set()),
        (
            DerivedScalar.ONLINE_MLP_AUTOENCODER_ACT_TIMES_GRAD,
            {HookPoint.MLP_POST_ACT},
            set(),
            {Site.MLP_POST_ACT},
        ),
    ],
)
def test_of_a_ranking(
    scalar: DerivedScalar, values: set[HookPoint], gradients: set[HookPoint], sites: set[Site]
) -> None:
    assert kept_for(top_k(scalar)) == Kept(values, gradients, sites)


@pytest.mark.parametrize(
    ("scalar", "values", "gradients", "sites"),
    [
        (DerivedScalar.ATTN_QUERY, {HookPoint.ATTN_Q}, {HookPoint.ATTN_Q}, set()),
        (DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP, RESIDUALS, RESIDUALS, set()),
        (
            DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_ERROR,
            {HookPoint.RESID_DELTA_ATTN},
            set(),
            {Site.RESID_DELTA_ATTN},
        ),
    ],
)
def test_of_a_backward_pass(
    scalar: DerivedScalar, values: set[HookPoint], gradients: set[HookPoint], sites: set[Site]
) -> None:
    wanted = Kept(values, gradients, sites)
    assert kept_for(top_k(scalar, pass_type=PassType.BACKWARD)) == wanted
    assert kept_for(DerivedScalarsSpec(scalar, 0, 0, PassType.BACKWARD)) == wanted


@pytest.mark.parametrize(
    ("scoring", "nodes", "values"),
    [
        (
            TokenScoringType.UPVOTED_OUTPUT_TOKENS,
            DerivedScalar.TOKEN_ATTRIBUTION,
            {HookPoint.RESID_POST_EMB},
        ),
        (
            TokenScoringType.UPVOTED_OUTPUT_TOKENS,
            DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
            {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V, HookPoint.ATTN_V_OUT},
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP,
            DerivedScalar.MLP_ACT_TIMES_GRAD,
            {HookPoint.MLP_POST_ACT, HookPoint.RESID_POST_ATTN},
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
            DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
            {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_Q, HookPoint.ATTN_K} | RESIDUALS,
        ),
        (
            TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
            DerivedScalar.MLP_ACT_TIMES_GRAD,
            {HookPoint.MLP_POST_ACT},
        ),
    ],
)
def test_of_scored_tokens(scoring: TokenScoringType, nodes: DerivedScalar, values: set[HookPoint]) -> None:
    """What the nodes that are scored need, and no more gradients."""
    alone, with_tokens = kept_for(nodes=[nodes]), kept_for(ScoredTokensSpec("nodes", scoring), nodes=[nodes])
    assert with_tokens == Kept(values, alone.gradients, alone.site_gradients)


def test_of_token_pairs() -> None:
    """Attention is kept where the nodes are latents."""
    latents, neurons = DerivedScalar.ONLINE_ATTENTION_AUTOENCODER_LATENT, DerivedScalar.MLP_POST_ACT
    pairs = TokenPairAttributionSpec("nodes")
    attention = {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V}
    assert kept_for(pairs, nodes=[latents]).values == {HookPoint.RESID_DELTA_ATTN} | attention
    assert kept_for(pairs, nodes=[neurons]).values == {HookPoint.MLP_POST_ACT}


def test_of_writes_to_a_latent() -> None:
    latent = ActivationIndex(HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT, 0, (None, 0))
    scalar = DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
    inference = InferenceSpec((1, 2), within_layer_gradient=latent)
    found = kept_for(DerivedAttentionScalarsSpec(scalar, 0, 0), inference=inference)
    assert found == Kept(
        {HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V, HookPoint.RESID_DELTA_ATTN}, set(), set()
    )


def test_of_a_batch_are_those_of_all_calls() -> None:
    calls = [
        Call(str(scalar), (InferenceSubRequest(InferenceSpec((1,)), {"nodes": top_k(scalar)}),))
        for scalar in (DerivedScalar.MLP_ACT_TIMES_GRAD, DerivedScalar.ATTN_QK_PROBS)
    ]
    wanted = Kept({HookPoint.MLP_POST_ACT, HookPoint.ATTN_QK_PROBS}, {HookPoint.MLP_POST_ACT}, set())
    assert kept_by(plan_batch(calls, AUTOENCODERS, n_layers=2)) == wanted


# Rows that stand together

RUN = InferenceSpec((3, 4, 5), LossConfig(LossName.LOGIT_DIFF, (1,), (2,)))
ACT, EFFECT = DerivedScalar.MLP_ACT_TIMES_GRAD, DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD


def planned(*calls: Sequence[MultipleTopKSpec], run: InferenceSpec = RUN) -> Plan:
    """Of calls of sub-requests that each rank something called "nodes"."""
    return plan_batch(
        [
            Call(str(index), tuple(InferenceSubRequest(run, {"nodes": spec}) for spec in call))
            for index, call in enumerate(calls)
        ],
        AUTOENCODERS,
        n_layers=2,
    )


def test_rows_that_rank_the_same_stand_together() -> None:
    """Whatever their k and the token they look at; each call finds its rows again, in order."""
    one, other = top_k(ACT), top_k(EFFECT)
    plan = planned([one, other], [replace(one, top_and_bottom_k=9)], [replace(other, top_and_bottom_k=1)])
    assert [(row.call_index, row.sub_request_index) for row in plan.rows] == [(0, 0), (1, 0), (0, 1), (2, 0)]
    assert [(group.start, group.stop) for group in plan.groups] == [(0, 2), (2, 4)]
    assert [plan.rows_of[call] for call in range(3)] == [[0, 2], [1], [3]]
    at_tokens = planned(*([replace(one, token_index=token)] for token in (0, 2)), [one])
    assert [(group.start, group.stop) for group in at_tokens.groups] == [(0, 2), (2, 3)]


def test_nothing_is_ranked_or_summed_twice() -> None:
    singleton, effects = (GroupId.SINGLETON, (ACT,)), (GroupId.DIRECTION_WRITE, (ACT, EFFECT))
    plan = planned([MultipleTopKSpec((singleton, effects), 3)])
    (group,) = plan.groups
    forward = PassType.FORWARD
    assert group.rankings(only_logits=False) == [
        NodeRanking(scalar, forward, largest, None, None)
        for scalar in (ACT, EFFECT)
        for largest in (True, False)
    ]
    kept = (Dimension.SEQUENCE_TOKENS,)
    assert group.sums(only_logits=False) == [Summing(one, (forward,), kept) for one in (ACT, EFFECT)]
    assert not group.rankings(only_logits=True)
    assert not group.sums(only_logits=True)


def test_groups_without_a_bottom_rank_the_largest_alone() -> None:
    (group,) = planned([MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), 3)]).groups
    assert [one.largest for one in group.rankings(only_logits=True)] == [True]
    assert group.rankings(only_logits=False) == []


def test_what_is_read_backward_ranks_activations_and_adds_gradients_to_sums() -> None:
    (group,) = planned([top_k(DerivedScalar.MLP_POST_ACT, pass_type=PassType.BACKWARD)]).groups
    assert {one.pass_type for one in group.rankings(only_logits=False)} == {PassType.FORWARD}
    (total,) = group.sums(only_logits=False)
    assert total.pass_types == (PassType.FORWARD, PassType.BACKWARD)


def test_layers_that_one_sub_request_leaves_out_all_leave_out() -> None:
    plan = planned([top_k(ACT), replace(top_k(ACT), first_layer_index=2)], [top_k(ACT)])
    firsts = [{one.first_layer_index for one in group.rankings(only_logits=False)} for group in plan.groups]
    assert firsts == [{2}, {None}]


def test_logits_are_wanted_at_the_tokens_that_any_sub_request_names() -> None:
    logits = MultipleTopKSpec(((GroupId.LOGITS, (DerivedScalar.LOGITS,)),), 3)
    first, last = (replace(logits, token_index=token) for token in (0, 2))
    assert {row.logit_tokens for row in planned([first, last]).rows} == {(0, 2)}
    assert {row.logit_tokens for row in planned([first], [last]).rows} == {(0, 2), (2,)}
    assert {row.logit_tokens for row in planned([first, logits]).rows} == {(0, 1, 2)}
    assert {row.logit_tokens for row in planned([top_k(ACT)]).rows} == {(2,)}


# Directions of interest

HEAD, NEURON = NodeIndex(NodeType.ATTENTION_HEAD, 1, (3, 1, 0)), NodeIndex(NodeType.MLP_NEURON, 1, (2, 0))
ATTENTION_LATENT = NodeIndex(NodeType.ATTENTION_AUTOENCODER_LATENT, 0, (2, 0))
WHICHEVER_LATENT = NodeIndex(NodeType.AUTOENCODER_LATENT, 1, (2, 0))
MLP_AUTOENCODER = AUTOENCODERS[:1]


def row_of(
    trace: Trace | None, *ablations: AblationSpec, autoencoders: Sequence[Autoencoder] = AUTOENCODERS
) -> Row:
    loss = None if trace else RUN.loss
    run = InferenceSpec((3, 4, 5, 6, 7), loss, trace, ablations)
    (row,) = plan_batch([Call("", (InferenceSubRequest(run, {}),))], autoencoders, n_layers=2).rows
    return row


@pytest.mark.parametrize(
    ("trace", "tokens", "depth"),
    [
        (None, [4], None),
        (Trace(NEURON), [2], 6),
        (Trace(HEAD, AttentionTraceType.Q), [3], 4),
        (Trace(HEAD, AttentionTraceType.K), [1], 4),
        (Trace(HEAD, AttentionTraceType.V, downstream=Trace(NEURON)), [1], 4),
        (Trace(HEAD, AttentionTraceType.QK), [1, 3], 4),
        (Trace(HEAD, AttentionTraceType.K, post_act=True), [0, 1, 2, 3], 4),
        (Trace(ATTENTION_LATENT), [0, 1, 2], 0),
        (Trace(WHICHEVER_LATENT), [2], 6),
    ],
)
def test_where_directions_are_other_than_zero(
    trace: Trace | None, tokens: list[int], depth: int | None
) -> None:
    """And the depth of the last write to the residual stream that an objective sees, the embedding at 0."""
    autoencoders = MLP_AUTOENCODER if trace is not None and trace.node is WHICHEVER_LATENT else AUTOENCODERS
    row = row_of(trace, autoencoders=autoencoders)
    assert list(row.direction_tokens) == tokens
    assert (None if row.stream is None else row.stream.depth) == depth


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_that_are_set_reach_every_token(value: float) -> None:
    """To hold a gradient back brings none anywhere."""
    index = ActivationIndex(HookPoint.RESID_POST_MLP, 0, (1, 0), PassType.BACKWARD)
    row = row_of(None, AblationSpec(index, value))
    assert list(row.direction_tokens) == ([0, 1, 2, 3, 4] if value else [4])


def test_whichever_autoencoder_is_loaded_is_spelled_out() -> None:
    row = row_of(Trace(WHICHEVER_LATENT), autoencoders=MLP_AUTOENCODER)
    assert row.trace is not None
    assert row.trace.node.node_type is NodeType.MLP_AUTOENCODER_LATENT


def test_interventions_are_kept_by_site_in_the_order_of_rows() -> None:
    index = ActivationIndex(HookPoint.MLP_POST_ACT, 1, (0, 0))
    runs = [replace(RUN, ablations=(AblationSpec(index, value),)) for value in (1.0, 2.0)]
    calls = [Call(str(run), (InferenceSubRequest(run, {"nodes": top_k(ACT)}),)) for run in runs]
    found = plan_batch(calls, AUTOENCODERS, n_layers=2).interventions
    assert list(found) == [(HookPoint.MLP_POST_ACT, 1)]
    assert [(one.row, one.n_tokens, one.ablation.value) for one in found[HookPoint.MLP_POST_ACT, 1]] == [
        (0, 3, 1.0),
        (1, 3, 2.0),
    ]

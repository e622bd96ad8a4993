"""What a general request stands for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    AttentionTraceType,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
    TokenScoringType,
    Trace,
)
from tdb_server.errors import OverLimit
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferRequest

from tests.unit.service.infer_changes import (
    ALL,
    BACKWARD,
    HEAD,
    NEURON,
    ablated,
    at,
    loss,
    ranked,
    traced,
    wanted,
    without_loss,
)
from tests.unit.service.tiny_requests import LIMITS, N_TOKENS, infer, model, node, parse, violations


def test_how_it_is_run() -> None:
    request = infer(
        loss(1, (" the",), (" of",)),
        ablated(at(HookPoint.RESID_POST_ATTN, 1, 2, 5)),
        ablated(at(HookPoint.MLP_POST_ACT, 0, ALL, 9, pass_type=BACKWARD), 1.5),
    )
    (found,) = parse(request)
    assert found.inference.ablations == (
        AblationSpec(ActivationIndex(HookPoint.RESID_POST_ATTN, 1, (2, 5)), 0.0),
        AblationSpec(ActivationIndex(HookPoint.MLP_POST_ACT, 0, (None, 9), PassType.BACKWARD), 1.5),
    )
    assert found.processing == {}


def test_a_trace_without_loss() -> None:
    request = infer(without_loss, traced(node(NEURON, 1, 2, 5), pre_or_post_act=2))
    (found,) = parse(request)
    assert found.inference.loss is None
    assert found.inference.trace == Trace(NodeIndex(NodeType.MLP_NEURON, 1, (2, 5)), post_act=True)


def test_a_value_traced_towards_the_loss_keeps_the_loss() -> None:
    (found,) = parse(infer(traced(node(HEAD, 1, 4, 2, 0), trace_type=4)))
    assert found.inference.loss is not None
    assert found.inference.trace.attention_trace_type is AttentionTraceType.V


def test_what_is_wanted() -> None:
    request = infer(
        wanted("tokens", "scored_tokens", depends_on="top", token_scoring_type=1, num_tokens=4),
        ranked(
            "top",
            (GroupId.ACTIVATION, [DerivedScalar.MLP_POST_ACT, DerivedScalar.ALWAYS_ONE]),
            (GroupId.WRITE_NORM, [DerivedScalar.MLP_WRITE_NORM, DerivedScalar.RESID_POST_EMBEDDING_NORM]),
            token_index=-1,
            dimensions_to_keep_for_sum=[1],
        ),
        wanted("pairs", "token_pair_attribution", depends_on="top", num_tokens_attended_to=2),
        wanted(
            "one",
            "derived_scalars",
            derived_scalar_type=DerivedScalar.MLP_PRE_ACT,
            layer_index=0,
            activation_index=3,
            pass_type=BACKWARD,
            normalizer=2.0,
            num_top_tokens=5,
        ),
        wanted(
            "head",
            "derived_attention_scalars",
            derived_scalar_type=DerivedScalar.ATTN_QK_PROBS,
            layer_index=0,
            activation_index=3,
            max_scalar=1.0,
            max_total_scalar_in=2.0,
            max_total_scalar_out=3.0,
        ),
    )
    (found,) = parse(request)
    assert found.processing == {
        "tokens": ScoredTokensSpec("top", TokenScoringType.UPVOTED_OUTPUT_TOKENS, 4),
        "top": MultipleTopKSpec(
            (
                (GroupId.ACTIVATION, (DerivedScalar.MLP_POST_ACT, DerivedScalar.ALWAYS_ONE)),
                (GroupId.WRITE_NORM, (DerivedScalar.MLP_WRITE_NORM, DerivedScalar.RESID_POST_EMBEDDING_NORM)),
            ),
            3,
            N_TOKENS - 1,
            PassType.FORWARD,
            (Dimension.SEQUENCE_TOKENS,),
        ),
        "pairs": TokenPairAttributionSpec("top", 2),
        "one": DerivedScalarsSpec(DerivedScalar.MLP_PRE_ACT, 0, 3, PassType.BACKWARD, 2.0, 5),
        "head": DerivedAttentionScalarsSpec(DerivedScalar.ATTN_QK_PROBS, 0, 3, 1.0, 2.0, 3.0),
    }
    assert list(found.processing) == ["tokens", "top", "pairs", "one", "head"]


def test_keys_and_values_are_counted_by_key_value_head() -> None:
    info = replace(model(), n_key_value_heads=2)
    assert parse(infer(ablated(at(HookPoint.ATTN_K, 0, 0, 1, 0))), info)
    fields = violations(infer(ablated(at(HookPoint.ATTN_V, 0, 0, 2, 0))), info)
    assert fields[0][1] == "TENSOR_INDEX_OUT_OF_RANGE"
    assert parse(infer(ablated(at(HookPoint.ATTN_Q, 0, 0, 3, 0))), info)


def test_rankings_of_one_name_rank_the_same() -> None:
    pair = [*infer(ranked()).sub_requests, *infer(ranked(top_and_bottom_k=5)).sub_requests]
    assert len(parse(InferRequest(sub_requests=pair))) == 2
    pair = [*infer(ranked()).sub_requests, *infer(ranked(pass_type=BACKWARD)).sub_requests]
    field = "sub_requests[1].processing_specs[0].multiple_top_k"
    assert violations(InferRequest(sub_requests=pair)) == [(field, "SPECS_DIFFER")]


def test_too_many_processing_specs() -> None:
    with pytest.raises(OverLimit, match="processing_specs"):
        parse(infer(ranked("a"), ranked("b")), limits=replace(LIMITS, max_processing_specs=1))


def test_an_empty_call() -> None:
    assert violations(InferRequest()) == [("sub_requests", "FIELD_REQUIRED")]

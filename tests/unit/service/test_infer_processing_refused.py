"""Every way in which a general request is refused for what it wants to know."""

from __future__ import annotations

import math

import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint

from tests.unit.service.infer_changes import (
    ALL,
    ATTENTION_AUTOENCODER,
    BACKWARD,
    MLP_AUTOENCODER,
    ablated,
    at,
    one,
    pairs,
    ranked,
    scored,
    wanted,
    without_loss,
)
from tests.unit.service.tiny_requests import Change, infer, names, parse, violations

SPEC = "processing_specs[0]"
MTK = f"{SPEC}.multiple_top_k"
SCALARS = f"{MTK}.groups[0].derived_scalar_types"
ONE, PAIRS = f"{SPEC}.derived_scalars", f"{SPEC}.derived_attention_scalars"
D = DerivedScalar


WHAT_IS_WANTED: list[tuple[list[Change], list[tuple[str, str]]]] = [
    ([lambda one: one.processing_specs.add(name="x")], [(SPEC, "FIELD_REQUIRED")]),
    ([ranked("")], [(f"{SPEC}.name", "FIELD_REQUIRED")]),
    ([ranked("a"), ranked("a")], [("processing_specs[1].name", "DUPLICATE_NAME")]),
    ([wanted("a", "multiple_top_k", top_and_bottom_k=1)], [(f"{MTK}.groups", "FIELD_REQUIRED")]),
    (
        [wanted("a", "multiple_top_k", top_and_bottom_k=1, groups=[(GroupId.LOGITS, [])])],
        [(SCALARS, "FIELD_REQUIRED")],
    ),
    (
        [
            lambda one: one.processing_specs.add(name="x").multiple_top_k.groups.add(
                derived_scalar_types=[0, 99]
            )
        ],
        [
            (f"{MTK}.groups[0].group_id", "FIELD_REQUIRED"),
            (f"{SCALARS}[0]", "FIELD_REQUIRED"),
            (f"{SCALARS}[1]", "UNKNOWN_ENUM_VALUE"),
        ],
    ),
    (
        [ranked("a", (GroupId.LOGITS, [D.LOGITS]), (GroupId.LOGITS, [D.LOGITS]))],
        [(f"{MTK}.groups[1].group_id", "DUPLICATE_NAME")],
    ),
    (
        [ranked("a", (GroupId.ACTIVATION, [D.MLP_PRE_ACT, D.MLP_POST_ACT]))],
        [(f"{SCALARS}[1]", "DERIVED_SCALAR_DOES_NOT_FIT")],
    ),
    (
        [
            ranked(
                "a",
                (GroupId.ACTIVATION, [D.ATTN_QK_PROBS]),
                (GroupId.WRITE_NORM, [D.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN]),
            )
        ],
        [(f"{MTK}.groups[1].derived_scalar_types", "DERIVED_SCALAR_DOES_NOT_FIT")],
    ),
    ([ranked(top_and_bottom_k=0)], [(f"{MTK}.top_and_bottom_k", "OUT_OF_RANGE")]),
    ([ranked(token_index=-2)], [(f"{MTK}.token_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
    ([ranked(token_index=9)], [(f"{MTK}.token_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
    ([ranked(pass_type=4)], [(f"{MTK}.pass_type", "UNKNOWN_ENUM_VALUE")]),
    (
        [ranked(dimensions_to_keep_for_sum=[1, 0, 11])],
        [
            (f"{MTK}.dimensions_to_keep_for_sum[1]", "FIELD_REQUIRED"),
            (f"{MTK}.dimensions_to_keep_for_sum[2]", "UNKNOWN_ENUM_VALUE"),
        ],
    ),
    (
        [ranked("a", (GroupId.SINGLETON, [D.MLP_WRITE_NORM]), pass_type=BACKWARD)],
        [(f"{SCALARS}[0]", "DERIVED_SCALAR_DOES_NOT_FIT")],
    ),
    (
        [ranked("a", (GroupId.SINGLETON, [D.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS]))],
        [(f"{SCALARS}[0]", "DERIVED_SCALAR_DOES_NOT_FIT")],
    ),
    ([without_loss, ranked(pass_type=BACKWARD)], [(f"{SCALARS}[0]", "OBJECTIVE_REQUIRED")]),
    *(
        (
            [without_loss, ranked("a", (GroupId.SINGLETON, [scalar]))],
            [(f"{SCALARS}[0]", "OBJECTIVE_REQUIRED")],
        )
        for scalar in (
            D.MLP_ACT_TIMES_GRAD,
            D.TOKEN_ATTRIBUTION,
            D.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
            D.RESID_POST_MLP_PROJ_TO_FINAL_RESIDUAL_GRAD,
        )
    ),
    (
        [ranked("a", (GroupId.SINGLETON, [D.ONLINE_AUTOENCODER_WRITE_NORM]))],
        [(f"{SCALARS}[0]", "AUTOENCODER_NOT_LOADED")],
    ),
    (
        [lambda one: one.processing_specs.add(name="x").derived_scalars.SetInParent()],
        [(f"{ONE}.derived_scalar_type", "FIELD_REQUIRED")],
    ),
    ([one(D.MLP_POST_ACT, None)], [(f"{ONE}.layer_index", "FIELD_REQUIRED")]),
    ([one(D.MLP_POST_ACT, 3)], [(f"{ONE}.layer_index", "LAYER_OUT_OF_RANGE")]),
    ([one(D.LOGITS, 0)], [(f"{ONE}.layer_index", "FIELD_NOT_ALLOWED")]),
    ([one(D.ATTN_QK_PROBS)], [(f"{ONE}.derived_scalar_type", "DERIVED_SCALAR_DOES_NOT_FIT")]),
    (
        [one(D.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN, activation_index=4)],
        [(f"{ONE}.activation_index", "TENSOR_INDEX_OUT_OF_RANGE")],
    ),
    ([one(D.MLP_POST_ACT, activation_index=192)], [(f"{ONE}.activation_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
    ([one(D.MLP_POST_ACT, activation_index=-1)], [(f"{ONE}.activation_index", "TENSOR_INDEX_OUT_OF_RANGE")]),
    (
        [one(D.ALWAYS_ONE, None, activation_index=1)],
        [(f"{ONE}.activation_index", "TENSOR_INDEX_OUT_OF_RANGE")],
    ),
    (
        [one(D.MLP_WRITE_NORM, pass_type=BACKWARD)],
        [(f"{ONE}.derived_scalar_type", "DERIVED_SCALAR_DOES_NOT_FIT")],
    ),
    ([one(D.MLP_POST_ACT, normalizer=math.nan)], [(f"{ONE}.normalizer", "NOT_FINITE")]),
    ([one(D.MLP_POST_ACT, normalizer=0.0)], [(f"{ONE}.normalizer", "OUT_OF_RANGE")]),
    (
        [one(D.MLP_POST_ACT, normalizer=1.0, normalize_by_prompt_maximum=True)],
        [(f"{ONE}.normalizer", "FIELD_NOT_ALLOWED")],
    ),
    ([one(D.MLP_POST_ACT, num_top_tokens=0)], [(f"{ONE}.num_top_tokens", "OUT_OF_RANGE")]),
    ([one(D.ONLINE_MLP_AUTOENCODER_LATENT)], [(f"{ONE}.derived_scalar_type", "AUTOENCODER_NOT_LOADED")]),
    ([pairs(D.MLP_POST_ACT)], [(f"{PAIRS}.derived_scalar_type", "DERIVED_SCALAR_DOES_NOT_FIT")]),
    ([pairs(D.ATTN_QK_PROBS, None)], [(f"{PAIRS}.layer_index", "FIELD_REQUIRED")]),
    ([pairs(D.ATTN_QK_PROBS, 5)], [(f"{PAIRS}.layer_index", "LAYER_OUT_OF_RANGE")]),
    (
        [pairs(D.ATTN_QK_PROBS, activation_index=4)],
        [(f"{PAIRS}.activation_index", "TENSOR_INDEX_OUT_OF_RANGE")],
    ),
    (
        [pairs(D.ATTN_QK_PROBS, max_scalar=-1.0, max_total_scalar_in=0.0, max_total_scalar_out=math.inf)],
        [
            (f"{PAIRS}.max_scalar", "OUT_OF_RANGE"),
            (f"{PAIRS}.max_total_scalar_in", "OUT_OF_RANGE"),
            (f"{PAIRS}.max_total_scalar_out", "NOT_FINITE"),
        ],
    ),
    (
        [pairs(D.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS)],
        [(f"{PAIRS}.derived_scalar_type", "FIELD_REQUIRED")],
    ),
    ([scored()], [(f"{SPEC}.scored_tokens.depends_on", "UNKNOWN_DEPENDENCY")]),
    ([scored(depends_on="")], [(f"{SPEC}.scored_tokens.depends_on", "FIELD_REQUIRED")]),
    (
        [scored(depends_on="one"), one(D.MLP_POST_ACT)],
        [(f"{SPEC}.scored_tokens.depends_on", "WRONG_DEPENDENCY")],
    ),
    ([scored(num_tokens=0), ranked()], [(f"{SPEC}.scored_tokens.num_tokens", "OUT_OF_RANGE")]),
    (
        [scored(token_scoring_type=0), ranked()],
        [(f"{SPEC}.scored_tokens.token_scoring_type", "FIELD_REQUIRED")],
    ),
    (
        [wanted("p", "token_pair_attribution", depends_on="nobody")],
        [
            (f"{SPEC}.token_pair_attribution.num_tokens_attended_to", "OUT_OF_RANGE"),
            (f"{SPEC}.token_pair_attribution.depends_on", "UNKNOWN_DEPENDENCY"),
        ],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), WHAT_IS_WANTED, ids=names(WHAT_IS_WANTED))
def test_what_is_wanted_is_refused(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(infer(*changes)) == [(f"sub_requests[0].{field}", reason) for field, reason in expected]


def test_a_read_direction_needs_the_neuron_or_latent_that_reads() -> None:
    read = one(D.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, None)
    field = f"sub_requests[0].{ONE}.derived_scalar_type"
    refused = [(field, "DERIVED_SCALAR_DOES_NOT_FIT")]
    assert violations(infer(read)) == refused
    assert violations(infer(ablated(at(HookPoint.MLP_POST_ACT, 1, ALL, 5)), read)) == refused
    assert (
        violations(infer(ablated(at(HookPoint.MLP_POST_ACT, 1, 2, ALL, pass_type=BACKWARD)), read)) == refused
    )
    assert parse(infer(ablated(at(HookPoint.MLP_POST_ACT, 1, ALL, 5, pass_type=BACKWARD), 1.0), read))
    for place in (HookPoint.ONLINE_AUTOENCODER_LATENT, HookPoint.ONLINE_MLP_AUTOENCODER_LATENT):
        latent, latents = (ablated(at(place, 1, 2, one, pass_type=BACKWARD), 1.0) for one in (5, ALL))
        assert parse(infer(latent, read), MLP_AUTOENCODER)
        assert violations(infer(latents, read), MLP_AUTOENCODER) == refused
    of_attention = ablated(at(HookPoint.ONLINE_AUTOENCODER_LATENT, 1, 2, 5, pass_type=BACKWARD), 1.0)
    assert violations(infer(of_attention, read), ATTENTION_AUTOENCODER) == refused

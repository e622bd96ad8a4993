"""What a general request stands for, and every way in which one is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType
from tdb_server.domain.place import Place
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
from tdb_server.service.enum_names import DERIVED_SCALARS, GROUP_IDS, PLACES
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage
from transformer_debugger.v1.activation_pb2 import TensorIndex
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSubRequest, InferRequest

from tests.unit.service.tiny_requests import (
    LIMITS,
    N_TOKENS,
    Change,
    infer,
    model,
    names,
    node,
    parse,
    violations,
)

HEAD, NEURON = 1, 4
FORWARD, BACKWARD = 1, 2
ALL = TensorIndex(all=True)
MLP_AUTOENCODER, ATTENTION_AUTOENCODER = model(Site.MLP_POST_ACT), model(Site.RESID_DELTA_ATTN)


def without_loss(message: InferenceSubRequest) -> None:
    message.inference_spec.ClearField("loss_fn_config")


def loss(name: int, targets: tuple[str, ...] = (" the",), distractors: tuple[str, ...] = ()) -> Change:
    def change(message: InferenceSubRequest) -> None:
        config = message.inference_spec.loss_fn_config
        config.Clear()
        config.name = name
        config.target_tokens.extend(targets)
        config.distractor_tokens.extend(distractors)

    return change


def at(
    place: Place, layer: int | None, *indices: int | TensorIndex, pass_type: int = 0
) -> ActivationIndexMessage:
    cells = [one if isinstance(one, TensorIndex) else TensorIndex(index=one) for one in indices]
    return ActivationIndexMessage(
        activation_location_type=PLACES.numbers[place],
        layer_index=layer,
        tensor_indices=cells,
        pass_type=pass_type,  # type: ignore[arg-type]
    )


def ablated(index: ActivationIndexMessage, value: float = 0.0) -> Change:
    def change(message: InferenceSubRequest) -> None:
        message.inference_spec.ablation_specs.add(index=index, value=value)

    return change


def traced(node_index: Any, trace_type: int = 0, pre_or_post_act: int = 0, downstream: Any = None) -> Change:
    def change(message: InferenceSubRequest) -> None:
        config = message.inference_spec.trace_config
        config.node_index.CopyFrom(node_index)
        config.attention_trace_type = trace_type  # type: ignore[assignment]
        config.pre_or_post_act = pre_or_post_act  # type: ignore[assignment]
        if downstream is not None:
            config.downstream_trace_config.node_index.CopyFrom(downstream)

    return change


def latent(index: ActivationIndexMessage) -> Change:
    return lambda one: one.inference_spec.activation_index_for_within_layer_grad.CopyFrom(index)


def wanted(name: str, kind: str, **fields: Any) -> Change:
    """Another processing spec. Derived scalars and groups are given as the domain's."""
    if "derived_scalar_type" in fields:
        fields["derived_scalar_type"] = DERIVED_SCALARS.numbers[fields["derived_scalar_type"]]
    if "groups" in fields:
        fields["groups"] = [
            {
                "group_id": GROUP_IDS.numbers[group],
                "derived_scalar_types": [DERIVED_SCALARS.numbers[scalar] for scalar in scalars],
            }
            for group, scalars in fields["groups"]
        ]
    spec = NamedProcessingSpec(name=name, **{kind: fields})  # type: ignore[arg-type]
    return lambda one: one.processing_specs.append(spec)


def ranked(name: str = "top", *groups: tuple[GroupId, list[DerivedScalar]], **fields: Any) -> Change:
    groups = groups or ((GroupId.SINGLETON, [DerivedScalar.MLP_POST_ACT]),)
    return wanted(name, "multiple_top_k", **{"groups": groups, "top_and_bottom_k": 3, **fields})


def test_how_it_is_run() -> None:
    request = infer(
        loss(1, (" the",), (" of",)),
        ablated(at(Place.RESID_POST_ATTN, 1, 2, 5)),
        ablated(at(Place.MLP_POST_ACT, 0, ALL, 9, pass_type=BACKWARD), 1.5),
    )
    (found,) = parse(request)
    assert found.inference.ablations == (
        AblationSpec(ActivationIndex(Place.RESID_POST_ATTN, 1, (2, 5)), 0.0),
        AblationSpec(ActivationIndex(Place.MLP_POST_ACT, 0, (None, 9), PassType.BACKWARD), 1.5),
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


INDEX = "inference_spec.ablation_specs[0].index"
TRACE = "inference_spec.trace_config"
HOW_IT_IS_RUN: list[tuple[list[Change], list[tuple[str, str]]]] = [
    (
        [lambda one: one.ClearField("inference_spec")],
        [("inference_spec", "FIELD_REQUIRED"), ("inference_spec.prompt", "EMPTY_PROMPT")],
    ),
    ([loss(0)], [("inference_spec.loss_fn_config.name", "FIELD_REQUIRED")]),
    ([loss(9)], [("inference_spec.loss_fn_config.name", "UNKNOWN_ENUM_VALUE")]),
    ([loss(3, ())], [("inference_spec.loss_fn_config.target_tokens", "FIELD_REQUIRED")]),
    ([loss(3, (" the", ""))], [("inference_spec.loss_fn_config.target_tokens[1]", "NOT_ONE_TOKEN")]),
    (
        [loss(2, (" the",), (" of",))],
        [("inference_spec.loss_fn_config.distractor_tokens", "FIELD_NOT_ALLOWED")],
    ),
    ([traced(node(NEURON, 1, 2, 5))], [("inference_spec.loss_fn_config", "LOSS_AND_TRACE")]),
    (
        [without_loss, traced(node(HEAD, 1, 4, 2, 0), trace_type=4)],
        [("inference_spec.loss_fn_config", "OBJECTIVE_REQUIRED")],
    ),
    (
        [traced(node(HEAD, 1, 4, 2, 0), trace_type=4, downstream=node(NEURON, 1, 4, 3))],
        [("inference_spec.loss_fn_config", "LOSS_AND_TRACE")],
    ),
    (
        [without_loss, traced(node(NEURON, 1, 2, 5), pre_or_post_act=7)],
        [(f"{TRACE}.pre_or_post_act", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [traced(node(HEAD, 1, 4, 2, 0), trace_type=4, pre_or_post_act=2)],
        [(f"{TRACE}.pre_or_post_act", "FIELD_NOT_ALLOWED")],
    ),
    (
        [without_loss, traced(node(NEURON, 1, 2, 5), downstream=node(NEURON, 2, 2, 3))],
        [(f"{TRACE}.downstream_trace_config", "DOWNSTREAM_WITHOUT_V")],
    ),
    (
        [without_loss, traced(node(HEAD, 1, 4, 2, 0), trace_type=4, downstream=node(NEURON, 0, 4, 3))],
        [(f"{TRACE}.downstream_trace_config.node_index.layer_index", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [lambda one: one.inference_spec.ablation_specs.add()],
        [(INDEX, "FIELD_REQUIRED")],
    ),
    (
        [ablated(ActivationIndexMessage(tensor_indices=[ALL]))],
        [(f"{INDEX}.activation_location_type", "FIELD_REQUIRED")],
    ),
    (
        [ablated(at(Place.MLP_POST_ACT, 0, TensorIndex(), TensorIndex(all=False)))],
        [(f"{INDEX}.tensor_indices[0]", "FIELD_REQUIRED"), (f"{INDEX}.tensor_indices[1]", "FIELD_REQUIRED")],
    ),
    ([ablated(at(Place.LOGITS, 0, ALL, ALL))], [(f"{INDEX}.layer_index", "FIELD_NOT_ALLOWED")]),
    ([ablated(at(Place.ATTN_Q, None, ALL, ALL, ALL))], [(f"{INDEX}.layer_index", "FIELD_REQUIRED")]),
    ([ablated(at(Place.ATTN_Q, 1, ALL, ALL))], [(f"{INDEX}.tensor_indices", "WRONG_NUMBER_OF_INDICES")]),
    (
        [ablated(at(Place.ATTN_Q, 1, 9, 4, 12))],
        [(f"{INDEX}.tensor_indices[{i}]", "TENSOR_INDEX_OUT_OF_RANGE") for i in range(3)],
    ),
    (
        [ablated(at(Place.ATTN_QK_LOGITS, 1, 2, 3, ALL))],
        [(f"{INDEX}.tensor_indices", "MASKED_ATTENTION_CELL")],
    ),
    (
        [without_loss, ablated(at(Place.MLP_POST_ACT, 0, ALL, 3, pass_type=BACKWARD))],
        [(f"{INDEX}.pass_type", "OBJECTIVE_REQUIRED")],
    ),
    (
        [ablated(at(Place.MLP_POST_ACT, 0, ALL, 3), math.inf)],
        [("inference_spec.ablation_specs[0].value", "NOT_FINITE")],
    ),
    (
        [ablated(at(Place.MLP_POST_ACT, 0, ALL, 3)), ablated(at(Place.MLP_POST_ACT, 0, 2, ALL), 1.0)],
        [("inference_spec.ablation_specs[1]", "DUPLICATE_ABLATION")],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), HOW_IT_IS_RUN, ids=names(HOW_IT_IS_RUN))
def test_how_it_is_run_is_refused(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(infer(*changes)) == [(f"sub_requests[0].{field}", reason) for field, reason in expected]


def test_an_autoencoder_by_two_names_is_one() -> None:
    request = infer(
        ablated(at(Place.ONLINE_AUTOENCODER_LATENT, 0, 1, 3)),
        ablated(at(Place.ONLINE_MLP_AUTOENCODER_LATENT, 0, 1, 3), 1.0),
    )
    field = "sub_requests[0].inference_spec.ablation_specs[1]"
    assert violations(request, MLP_AUTOENCODER) == [(field, "DUPLICATE_ABLATION")]


def test_the_error_of_an_autoencoder_is_as_wide_as_its_site() -> None:
    request = infer(ablated(at(Place.ONLINE_AUTOENCODER_ERROR, 0, 1, 191)))
    assert parse(request, MLP_AUTOENCODER)
    field = "sub_requests[0].inference_spec.ablation_specs[0].index.tensor_indices[1]"
    assert violations(request, ATTENTION_AUTOENCODER) == [(field, "TENSOR_INDEX_OUT_OF_RANGE")]


def test_keys_and_values_are_counted_by_key_value_head() -> None:
    info = replace(model(), n_key_value_heads=2)
    assert parse(infer(ablated(at(Place.ATTN_K, 0, 0, 1, 0))), info)
    fields = violations(infer(ablated(at(Place.ATTN_V, 0, 0, 2, 0))), info)
    assert fields[0][1] == "TENSOR_INDEX_OUT_OF_RANGE"
    assert parse(infer(ablated(at(Place.ATTN_Q, 0, 0, 3, 0))), info)


SPEC = "processing_specs[0]"
MTK = f"{SPEC}.multiple_top_k"
SCALARS = f"{MTK}.groups[0].derived_scalar_types"
ONE, PAIRS = f"{SPEC}.derived_scalars", f"{SPEC}.derived_attention_scalars"
D = DerivedScalar


def one(scalar: DerivedScalar, layer: int | None = 0, **fields: Any) -> Change:
    return wanted("one", "derived_scalars", derived_scalar_type=scalar, layer_index=layer, **fields)


def pairs(scalar: DerivedScalar, layer: int | None = 0, **fields: Any) -> Change:
    return wanted(
        "pairs", "derived_attention_scalars", derived_scalar_type=scalar, layer_index=layer, **fields
    )


def scored(**fields: Any) -> Change:
    return wanted(
        "scored", "scored_tokens", **{"depends_on": "top", "token_scoring_type": 1, "num_tokens": 2, **fields}
    )


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


TO_LATENT = pairs(D.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS, 2)
LATENT_INDEX = "inference_spec.activation_index_for_within_layer_grad"
GENERIC, MLP_LATENT = Place.ONLINE_AUTOENCODER_LATENT, Place.ONLINE_MLP_AUTOENCODER_LATENT


def test_attention_writes_to_a_latent() -> None:
    (found,) = parse(infer(latent(at(GENERIC, 2, ALL, 69)), TO_LATENT), ATTENTION_AUTOENCODER)
    assert found.inference.within_layer_gradient == ActivationIndex(GENERIC, 2, (None, 69))


@pytest.mark.parametrize(
    ("index", "info", "expected"),
    [
        (
            at(Place.MLP_POST_ACT, 2, ALL, 6),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.activation_location_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(MLP_LATENT, 2, ALL, 6),
            MLP_AUTOENCODER,
            [(f"{LATENT_INDEX}.activation_location_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 2, ALL, 6),
            model(),
            [(f"{LATENT_INDEX}.activation_location_type", "AUTOENCODER_NOT_LOADED")],
        ),
        (
            at(GENERIC, 2, 1, 6),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[0]", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 2, ALL, ALL),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[1]", "FIELD_REQUIRED")],
        ),
        (
            at(GENERIC, 2, ALL, 96),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.tensor_indices[1]", "TENSOR_INDEX_OUT_OF_RANGE")],
        ),
        (
            at(GENERIC, 2, ALL, 6, pass_type=BACKWARD),
            ATTENTION_AUTOENCODER,
            [(f"{LATENT_INDEX}.pass_type", "FIELD_NOT_ALLOWED")],
        ),
        (
            at(GENERIC, 1, ALL, 6),
            ATTENTION_AUTOENCODER,
            [(f"{PAIRS}.layer_index", "DERIVED_SCALAR_DOES_NOT_FIT")],
        ),
    ],
)
def test_what_is_no_latent_to_write_to(
    index: ActivationIndexMessage, info: ModelInfo, expected: list[tuple[str, str]]
) -> None:
    found = violations(infer(latent(index), TO_LATENT), info)
    assert found == [(f"sub_requests[0].{field}", reason) for field, reason in expected]


def test_a_read_direction_needs_the_neuron_that_reads() -> None:
    read = one(D.VOCAB_TOKEN_WRITE_TO_INPUT_DIRECTION, None)
    field = f"sub_requests[0].{ONE}.derived_scalar_type"
    refused = [(field, "DERIVED_SCALAR_DOES_NOT_FIT")]
    assert violations(infer(read)) == refused
    assert violations(infer(ablated(at(Place.MLP_POST_ACT, 1, ALL, 5)), read)) == refused
    assert violations(infer(ablated(at(Place.MLP_POST_ACT, 1, 2, ALL, pass_type=BACKWARD)), read)) == refused
    assert parse(infer(ablated(at(Place.MLP_POST_ACT, 1, ALL, 5, pass_type=BACKWARD), 1.0), read))


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

"""Processing specs of the reference's HTTP API as those of the service."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from transformer_debugger.v1.processing_pb2 import (
    DerivedAttentionScalarsSpec,
    DerivedScalarGroup,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    NamedProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar, GroupId
from tdb_server.domain.node import Dimension
from tdb_server.domain.reason import Reason
from tdb_server.gateway.json_reader import JsonObject, as_list, as_member, malformed
from tdb_server.service.enum_names import (
    DERIVED_SCALARS,
    DIMENSIONS,
    GROUP_IDS,
    PASS_TYPES,
    TOKEN_SCORING_TYPES,
)


class SpecType(Enum):
    """What a spec says it is, where it does."""

    MULTIPLE_TOP_K = "multiple_top_k_derived_scalars_request_spec"
    DERIVED_SCALARS = "derived_scalars_request_spec"
    DERIVED_ATTENTION_SCALARS = "derived_attention_scalars_request_spec"
    SCORED_TOKENS = "scored_tokens_request_spec"
    TOKEN_PAIR_ATTRIBUTION = "token_pair_attribution_request_spec"


@dataclass(frozen=True, slots=True)
class SingleSpec:
    """An endpoint that answers one spec: its type, and the keys of it and of its answer in the bodies."""

    spec_type: SpecType
    request_key: str
    response_key: str


SINGLE_SPECS = {
    "derived_scalars": SingleSpec(
        SpecType.DERIVED_SCALARS, "derivedScalarsRequestSpec", "derivedScalarsResponseData"
    ),
    "derived_attention_scalars": SingleSpec(
        SpecType.DERIVED_ATTENTION_SCALARS,
        "derivedAttentionScalarsRequestSpec",
        "derivedAttentionScalarsResponseData",
    ),
    "multiple_top_k_derived_scalars": SingleSpec(
        SpecType.MULTIPLE_TOP_K,
        "multipleTopKDerivedScalarsRequestSpec",
        "multipleTopKDerivedScalarsResponseData",
    ),
}


def named_spec(name: str, body: JsonObject, spec_type: SpecType | None = None) -> NamedProcessingSpec:
    """A processing spec under its name.

    Args:
        name: the name.
        body: the spec.
        spec_type: what it is; None to go by what it says, or else by its keys.

    Raises:
        InvalidRequest: it cannot be told what it is, or a value is not of the type it should be.
    """
    match spec_type or _spec_type(body):
        case SpecType.MULTIPLE_TOP_K:
            return NamedProcessingSpec(name=name, multiple_top_k=_multiple_top_k(body))
        case SpecType.DERIVED_SCALARS:
            return NamedProcessingSpec(name=name, derived_scalars=_derived_scalars(body))
        case SpecType.DERIVED_ATTENTION_SCALARS:
            return NamedProcessingSpec(name=name, derived_attention_scalars=_derived_attention_scalars(body))
        case SpecType.SCORED_TOKENS:
            return NamedProcessingSpec(name=name, scored_tokens=_scored_tokens(body))
        case SpecType.TOKEN_PAIR_ATTRIBUTION:
            return NamedProcessingSpec(name=name, token_pair_attribution=_token_pair_attribution(body))


def _spec_type(body: JsonObject) -> SpecType:
    said = body.member("specType", SpecType)
    if said is not None:
        return said
    if body.value("dstListByGroupId") is not None:
        return SpecType.MULTIPLE_TOP_K
    if body.value("tokenScoringType") is not None:
        return SpecType.SCORED_TOKENS
    if body.value("numTokensAttendedTo") is not None:
        return SpecType.TOKEN_PAIR_ATTRIBUTION
    scalar = body.member("dst", DerivedScalar)
    if scalar is None:
        raise malformed(body.path("specType"), "is needed to tell what is wanted", Reason.FIELD_REQUIRED)
    is_of_pairs = Dimension.ATTENDED_TO_SEQUENCE_TOKENS in DERIVED_SCALAR_SHAPES[scalar].dimensions[1:]
    return SpecType.DERIVED_ATTENTION_SCALARS if is_of_pairs else SpecType.DERIVED_SCALARS


def _multiple_top_k(body: JsonObject) -> MultipleTopKSpec:
    groups = body.object("dstListByGroupId")
    kept_key = "dimensionsToKeepForIntermediateSum"
    if body.value(kept_key) == []:
        raise malformed(body.path(kept_key), "must not be empty; leave it out for the tokens")
    return MultipleTopKSpec(
        groups=[] if groups is None else [_group(groups, key) for key, _ in groups.items()],
        token_index=body.integer("tokenIndex"),
        top_and_bottom_k=body.integer("topAndBottomK"),
        pass_type=body.number_of("passType", PASS_TYPES),
        dimensions_to_keep_for_sum=body.numbers_of(kept_key, DIMENSIONS),
    )


def _group(groups: JsonObject, key: str) -> DerivedScalarGroup:
    path = groups.path(key)
    scalars = as_list(groups.value(key), path)
    return DerivedScalarGroup(
        group_id=GROUP_IDS.numbers[as_member(key, GroupId, path)],
        derived_scalar_types=[
            DERIVED_SCALARS.numbers[as_member(one, DerivedScalar, f"{path}[{i}]")]
            for i, one in enumerate(scalars)
        ],
    )


def _derived_scalars(body: JsonObject) -> DerivedScalarsSpec:
    _refuse_neuron_record(body)
    return DerivedScalarsSpec(
        derived_scalar_type=body.number_of("dst", DERIVED_SCALARS),
        layer_index=body.integer("layerIndex"),
        activation_index=body.integer("activationIndex") or 0,
        pass_type=body.number_of("passType", PASS_TYPES),
        num_top_tokens=body.integer("numTopTokens"),
    )


def _derived_attention_scalars(body: JsonObject) -> DerivedAttentionScalarsSpec:
    _refuse_neuron_record(body)
    return DerivedAttentionScalarsSpec(
        derived_scalar_type=body.number_of("dst", DERIVED_SCALARS),
        layer_index=body.integer("layerIndex"),
        activation_index=body.integer("activationIndex") or 0,
    )


def _scored_tokens(body: JsonObject) -> ScoredTokensSpec:
    return ScoredTokensSpec(
        depends_on=body.string("dependsOnSpecName"),
        token_scoring_type=body.number_of("tokenScoringType", TOKEN_SCORING_TYPES),
        num_tokens=body.integer("numTokens") or 0,
    )


def _token_pair_attribution(body: JsonObject) -> TokenPairAttributionSpec:
    return TokenPairAttributionSpec(
        depends_on=body.string("dependsOnSpecName"),
        num_tokens_attended_to=body.integer("numTokensAttendedTo") or 0,
    )


def _refuse_neuron_record(body: JsonObject) -> None:
    """The reference reads maxima from files of neuron records, which this service does not have."""
    key = "normalizeActivationsUsingNeuronRecord"
    if body.value(key) is not None:
        raise malformed(body.path(key), "this server has no neuron records", Reason.FIELD_NOT_ALLOWED)

"""Processing specs of the reference's HTTP API as those of the service."""

from __future__ import annotations

from dataclasses import dataclass

from transformer_debugger.v1.processing_pb2 import (
    DerivedAttentionScalarsSpec,
    DerivedScalarGroup,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    NamedProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)

from tdb_server.gateway import json_bodies as bodies
from tdb_server.service.enum_names import (
    DERIVED_SCALARS,
    DIMENSIONS,
    GROUP_IDS,
    PASS_TYPES,
    TOKEN_SCORING_TYPES,
)

SingleBody = (
    bodies.DerivedScalarsRequest
    | bodies.DerivedAttentionScalarsRequest
    | bodies.MultipleTopKDerivedScalarsRequest
)


@dataclass(frozen=True, slots=True)
class SingleSpec:
    """An endpoint that answers one spec: its body, and the key of the answer in the response's body."""

    body: type[SingleBody]
    response_key: str

    @property
    def request_key(self) -> str:
        """The spec's key in the body."""
        return self.response_key.replace("ResponseData", "RequestSpec")

    def spec(self, body: SingleBody) -> bodies.ProcessingRequestSpec | None:
        """The body's spec."""
        match body:
            case bodies.DerivedScalarsRequest():
                return body.derived_scalars_request_spec
            case bodies.DerivedAttentionScalarsRequest():
                return body.derived_attention_scalars_request_spec
            case bodies.MultipleTopKDerivedScalarsRequest():
                return body.multiple_top_k_derived_scalars_request_spec


SINGLE_SPECS = {
    "derived_scalars": SingleSpec(bodies.DerivedScalarsRequest, "derivedScalarsResponseData"),
    "derived_attention_scalars": SingleSpec(
        bodies.DerivedAttentionScalarsRequest, "derivedAttentionScalarsResponseData"
    ),
    "multiple_top_k_derived_scalars": SingleSpec(
        bodies.MultipleTopKDerivedScalarsRequest, "multipleTopKDerivedScalarsResponseData"
    ),
}


def named_spec(name: str, body: bodies.ProcessingRequestSpec) -> NamedProcessingSpec:
    """A processing spec under its name."""
    match body:
        case bodies.MultipleTopKDerivedScalarsRequestSpec():
            return NamedProcessingSpec(name=name, multiple_top_k=_multiple_top_k(body))
        case bodies.DerivedScalarsRequestSpec():
            return NamedProcessingSpec(name=name, derived_scalars=_derived_scalars(body))
        case bodies.DerivedAttentionScalarsRequestSpec():
            return NamedProcessingSpec(name=name, derived_attention_scalars=_derived_attention_scalars(body))
        case bodies.ScoredTokensRequestSpec():
            return NamedProcessingSpec(name=name, scored_tokens=_scored_tokens(body))
        case bodies.TokenPairAttributionRequestSpec():
            return NamedProcessingSpec(name=name, token_pair_attribution=_token_pair_attribution(body))


def _multiple_top_k(body: bodies.MultipleTopKDerivedScalarsRequestSpec) -> MultipleTopKSpec:
    return MultipleTopKSpec(
        groups=[
            DerivedScalarGroup(
                group_id=GROUP_IDS.numbers[group],
                derived_scalar_types=[DERIVED_SCALARS.numbers[one] for one in scalars],
            )
            for group, scalars in (body.dst_list_by_group_id or {}).items()
        ],
        token_index=body.token_index,
        top_and_bottom_k=body.top_and_bottom_k,
        pass_type=PASS_TYPES.number(body.pass_type),
        dimensions_to_keep_for_sum=[
            DIMENSIONS.numbers[one] for one in body.dimensions_to_keep_for_intermediate_sum or ()
        ],
    )


def _derived_scalars(body: bodies.DerivedScalarsRequestSpec) -> DerivedScalarsSpec:
    return DerivedScalarsSpec(
        derived_scalar_type=DERIVED_SCALARS.number(body.dst),
        layer_index=body.layer_index,
        activation_index=body.activation_index or 0,
        pass_type=PASS_TYPES.number(body.pass_type),
        num_top_tokens=body.num_top_tokens,
        normalize_by_prompt_maximum=body.normalize_activations_using_neuron_record is not None,
    )


def _derived_attention_scalars(
    body: bodies.DerivedAttentionScalarsRequestSpec,
) -> DerivedAttentionScalarsSpec:
    return DerivedAttentionScalarsSpec(
        derived_scalar_type=DERIVED_SCALARS.number(body.dst),
        layer_index=body.layer_index,
        activation_index=body.activation_index or 0,
    )


def _scored_tokens(body: bodies.ScoredTokensRequestSpec) -> ScoredTokensSpec:
    return ScoredTokensSpec(
        depends_on=body.depends_on_spec_name or "",
        token_scoring_type=TOKEN_SCORING_TYPES.number(body.token_scoring_type),
        num_tokens=body.num_tokens or 0,
    )


def _token_pair_attribution(body: bodies.TokenPairAttributionRequestSpec) -> TokenPairAttributionSpec:
    return TokenPairAttributionSpec(
        depends_on=body.depends_on_spec_name or "", num_tokens_attended_to=body.num_tokens_attended_to or 0
    )

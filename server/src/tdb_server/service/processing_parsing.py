"""From the wire's processing specs to the domain's, checked on their own and against each other."""

from __future__ import annotations

from collections.abc import Sequence

from transformer_debugger.v1.processing_pb2 import (
    DerivedAttentionScalarsSpec as DerivedAttentionScalarsMessage,
)
from transformer_debugger.v1.processing_pb2 import DerivedScalarsSpec as DerivedScalarsMessage
from transformer_debugger.v1.processing_pb2 import MultipleTopKSpec as MultipleTopKMessage
from transformer_debugger.v1.processing_pb2 import NamedProcessingSpec
from transformer_debugger.v1.processing_pb2 import ScoredTokensSpec as ScoredTokensMessage
from transformer_debugger.v1.processing_pb2 import TokenPairAttributionSpec as TokenPairAttributionMessage

from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.processing_validation import ProcessingCheck
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    MultipleTopKSpec,
    ProcessingSpec,
    ScoredTokensSpec,
    TokenPairAttributionSpec,
)
from tdb_server.domain.spec_relations import dependency_violations
from tdb_server.service.enum_names import (
    DERIVED_SCALARS,
    DIMENSIONS,
    GROUP_IDS,
    PASS_TYPES,
    TOKEN_SCORING_TYPES,
)
from tdb_server.service.request_reader import RequestReader

MAX_NAME_CHARACTERS = 256
"""Of a spec: its name stands in every message of a stream that has something of its result."""


def parse_processing(
    reader: RequestReader, messages: Sequence[NamedProcessingSpec], check: ProcessingCheck, path: str
) -> dict[str, ProcessingSpec | None]:
    """A sub-request's specs by name, in order; None for those that cannot be read.

    Args:
        reader: gathers what is wrong.
        messages: the specs.
        check: checks each against the model and the run.
        path: the list's field.
    """
    specs: dict[str, ProcessingSpec | None] = {}
    for i, message in enumerate(messages):
        spec_path = f"{path}[{i}]"
        if not message.name:
            reader.refuse(f"{spec_path}.name", "is required", Reason.FIELD_REQUIRED)
        elif len(message.name) > MAX_NAME_CHARACTERS:
            description = f"has {len(message.name)} characters; at most {MAX_NAME_CHARACTERS} are taken"
            reader.refuse(f"{spec_path}.name", description, Reason.OUT_OF_RANGE)
        elif message.name in specs:
            reader.refuse(
                f"{spec_path}.name", f"another spec is called {message.name!r}", Reason.DUPLICATE_NAME
            )
        spec = _parse_spec(reader, message, check.n_tokens, spec_path)
        if spec is not None:
            reader.note(check.violations(spec, f"{spec_path}.{message.WhichOneof('spec')}"))
        specs.setdefault(message.name, spec)
    for i, message in enumerate(messages):
        if message.HasField("scored_tokens"):
            depends_on, kind = message.scored_tokens.depends_on, "scored_tokens"
        elif message.HasField("token_pair_attribution"):
            depends_on, kind = message.token_pair_attribution.depends_on, "token_pair_attribution"
        else:
            continue
        reader.note(dependency_violations(depends_on, specs, f"{path}[{i}].{kind}.depends_on"))
    return specs


def _parse_spec(
    reader: RequestReader, message: NamedProcessingSpec, n_tokens: int | None, path: str
) -> ProcessingSpec | None:
    match message.WhichOneof("spec"):
        case "multiple_top_k":
            return _multiple_top_k(reader, message.multiple_top_k, n_tokens, f"{path}.multiple_top_k")
        case "derived_scalars":
            return _derived_scalars(reader, message.derived_scalars, f"{path}.derived_scalars")
        case "derived_attention_scalars":
            return _derived_attention_scalars(
                reader, message.derived_attention_scalars, f"{path}.derived_attention_scalars"
            )
        case "scored_tokens":
            return _scored_tokens(reader, message.scored_tokens, f"{path}.scored_tokens")
        case "token_pair_attribution":
            return _token_pair_attribution(message.token_pair_attribution)
        case _:
            reader.refuse(path, "says nothing of what is wanted; set one of its specs", Reason.FIELD_REQUIRED)
            return None


def _multiple_top_k(
    reader: RequestReader, message: MultipleTopKMessage, n_tokens: int | None, path: str
) -> MultipleTopKSpec | None:
    groups = _groups(reader, message, f"{path}.groups")
    pass_type = reader.member(message.pass_type, PASS_TYPES, f"{path}.pass_type", PassType.FORWARD)
    kept: list[Dimension] = []
    kept_path = f"{path}.dimensions_to_keep_for_sum"
    if not reader.only(message.dimensions_to_keep_for_sum, len(Dimension), "dimensions", kept_path):
        return None
    for i, number in enumerate(message.dimensions_to_keep_for_sum):
        dimension = reader.member(number, DIMENSIONS, f"{kept_path}[{i}]")
        if dimension is not None:
            kept.append(dimension)
    if groups is None or pass_type is None or len(kept) < len(message.dimensions_to_keep_for_sum):
        return None
    token_index = message.token_index if message.HasField("token_index") else None
    if token_index == -1 and n_tokens is not None:
        token_index = n_tokens - 1
    elif token_index == -1:
        token_index = None
    k = reader.limits.default_top_and_bottom_k
    if message.HasField("top_and_bottom_k"):
        k = message.top_and_bottom_k
    return MultipleTopKSpec(groups, k, token_index, pass_type, tuple(kept) or None)


def _groups(
    reader: RequestReader, message: MultipleTopKMessage, path: str
) -> tuple[tuple[GroupId, tuple[DerivedScalar, ...]], ...] | None:
    if not message.groups:
        reader.refuse(path, "at least one group is required", Reason.FIELD_REQUIRED)
        return None
    if not reader.only(message.groups, len(GroupId), "groups", path):
        return None
    groups: dict[GroupId, tuple[DerivedScalar, ...]] = {}
    for i, one in enumerate(message.groups):
        group = reader.member(one.group_id, GROUP_IDS, f"{path}[{i}].group_id")
        scalars_path = f"{path}[{i}].derived_scalar_types"
        if not one.derived_scalar_types:
            reader.refuse(scalars_path, "at least one derived scalar is required", Reason.FIELD_REQUIRED)
        if not reader.only(one.derived_scalar_types, len(DerivedScalar), "derived scalars", scalars_path):
            continue
        scalars = [
            reader.member(number, DERIVED_SCALARS, f"{scalars_path}[{j}]")
            for j, number in enumerate(one.derived_scalar_types)
        ]
        if group in groups:
            reader.refuse(f"{path}[{i}].group_id", "the group is given twice", Reason.DUPLICATE_NAME)
        elif group is not None and scalars and None not in scalars:
            groups[group] = tuple(scalar for scalar in scalars if scalar is not None)
    return tuple(groups.items()) if len(groups) == len(message.groups) else None


def _derived_scalars(
    reader: RequestReader, message: DerivedScalarsMessage, path: str
) -> DerivedScalarsSpec | None:
    scalar = reader.member(message.derived_scalar_type, DERIVED_SCALARS, f"{path}.derived_scalar_type")
    pass_type = reader.member(message.pass_type, PASS_TYPES, f"{path}.pass_type", PassType.FORWARD)
    if scalar is None or pass_type is None:
        return None
    return DerivedScalarsSpec(
        scalar,
        message.layer_index if message.HasField("layer_index") else None,
        message.activation_index,
        pass_type,
        message.normalizer if message.HasField("normalizer") else None,
        message.num_top_tokens if message.HasField("num_top_tokens") else None,
        message.normalize_by_prompt_maximum,
    )


def _derived_attention_scalars(
    reader: RequestReader, message: DerivedAttentionScalarsMessage, path: str
) -> DerivedAttentionScalarsSpec | None:
    scalar = reader.member(message.derived_scalar_type, DERIVED_SCALARS, f"{path}.derived_scalar_type")
    if not message.HasField("layer_index"):
        reader.refuse(f"{path}.layer_index", "a layer is needed", Reason.FIELD_REQUIRED)
        return None
    if scalar is None:
        return None
    return DerivedAttentionScalarsSpec(
        scalar,
        message.layer_index,
        message.activation_index,
        message.max_scalar if message.HasField("max_scalar") else None,
        message.max_total_scalar_in if message.HasField("max_total_scalar_in") else None,
        message.max_total_scalar_out if message.HasField("max_total_scalar_out") else None,
    )


def _scored_tokens(reader: RequestReader, message: ScoredTokensMessage, path: str) -> ScoredTokensSpec | None:
    scoring = reader.member(message.token_scoring_type, TOKEN_SCORING_TYPES, f"{path}.token_scoring_type")
    return None if scoring is None else ScoredTokensSpec(message.depends_on, scoring, message.num_tokens)


def _token_pair_attribution(message: TokenPairAttributionMessage) -> TokenPairAttributionSpec:
    return TokenPairAttributionSpec(message.depends_on, message.num_tokens_attended_to)

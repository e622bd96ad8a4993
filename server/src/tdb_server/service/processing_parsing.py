"""From the wire's processing specs to the domain's, checked on their own and against each other."""

from __future__ import annotations

from collections.abc import Container, Sequence

from transformer_debugger.v1.processing_pb2 import ActivationsSpec as ActivationsMessage
from transformer_debugger.v1.processing_pb2 import ComponentTotalsSpec as ComponentTotalsMessage
from transformer_debugger.v1.processing_pb2 import (
    DerivedAttentionScalarsSpec as DerivedAttentionScalarsMessage,
)
from transformer_debugger.v1.processing_pb2 import DerivedScalarGroup, NamedProcessingSpec
from transformer_debugger.v1.processing_pb2 import DerivedScalarsSpec as DerivedScalarsMessage
from transformer_debugger.v1.processing_pb2 import LensSpec as LensMessage
from transformer_debugger.v1.processing_pb2 import MultipleTopKSpec as MultipleTopKMessage
from transformer_debugger.v1.processing_pb2 import ScoredTokensSpec as ScoredTokensMessage
from transformer_debugger.v1.transformer_debugger_service_pb2 import InferenceSubRequest

from tdb_server.domain.axes import autoencoders_of_hook_point
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.processing_validation import ProcessingCheck
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    LensSpec,
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
    HOOK_POINTS,
    PASS_TYPES,
    TOKEN_SCORING_TYPES,
)
from tdb_server.service.request_reader import MessageReader

MAX_NAME_CHARACTERS = 256
"""The most for a spec's name, which every message of a stream repeats that has something of its result."""


def parse_processing(
    sub_request: MessageReader[InferenceSubRequest], check: ProcessingCheck
) -> dict[str, ProcessingSpec | None]:
    """A sub-request's specs by name, in order; None for those that cannot be read.

    Args:
        sub_request: which they stand in.
        check: checks each against the model and the run.
    """
    specs: dict[str, ProcessingSpec | None] = {}
    named: list[MessageReader[NamedProcessingSpec]] = sub_request.entries("processing_specs")
    for one in named:
        _check_name(one, specs)
        spec = _parse_spec(one, check.n_tokens)
        if spec is not None:
            one.request.note(check.violations(spec, one.at(one.message.WhichOneof("spec") or "")))
        specs.setdefault(one.message.name, spec)
    for one in named:
        kind = one.message.WhichOneof("spec")
        if kind == "scored_tokens" or kind == "token_pair_attribution":
            inner = one.inner(kind)
            one.request.note(dependency_violations(inner.message.depends_on, specs, inner.at("depends_on")))
    return specs


def _check_name(spec: MessageReader[NamedProcessingSpec], others: Container[str]) -> None:
    name = spec.message.name
    if not name:
        spec.refuse("name", "is required", Reason.FIELD_REQUIRED)
    elif len(name) > MAX_NAME_CHARACTERS:
        description = f"has {len(name)} characters; at most {MAX_NAME_CHARACTERS} are taken"
        spec.refuse("name", description, Reason.OUT_OF_RANGE)
    elif name in others:
        spec.refuse("name", f"another spec is called {name!r}", Reason.DUPLICATE_NAME)


def _parse_spec(spec: MessageReader[NamedProcessingSpec], n_tokens: int | None) -> ProcessingSpec | None:
    match spec.message.WhichOneof("spec"):
        case "multiple_top_k" as kind:
            return _multiple_top_k(spec.inner(kind), n_tokens)
        case "derived_scalars" as kind:
            return _derived_scalars(spec.inner(kind))
        case "derived_attention_scalars" as kind:
            return _derived_attention_scalars(spec.inner(kind))
        case "scored_tokens" as kind:
            return _scored_tokens(spec.inner(kind))
        case "token_pair_attribution":
            message = spec.message.token_pair_attribution
            return TokenPairAttributionSpec(message.depends_on, message.num_tokens_attended_to)
        case "lens" as kind:
            return _lens(spec.inner(kind), n_tokens)
        case "activations" as kind:
            return _activations(spec.inner(kind), n_tokens)
        case "component_totals" as kind:
            return _component_totals(spec.inner(kind))
        case _:
            spec.refuse("", "says nothing of what is wanted; set one of its specs", Reason.FIELD_REQUIRED)
            return None


def _multiple_top_k(
    spec: MessageReader[MultipleTopKMessage], n_tokens: int | None
) -> MultipleTopKSpec | None:
    groups = _groups(spec)
    pass_type = spec.member("pass_type", PASS_TYPES, PassType.FORWARD)
    kept = spec.members("dimensions_to_keep_for_sum", DIMENSIONS, "dimensions")
    if groups is None or pass_type is None or kept is None:
        return None
    k, token_index = spec.optional("top_and_bottom_k"), spec.optional("token_index")
    if k is None:
        k = spec.request.limits.default_top_and_bottom_k
    if token_index == -1:
        token_index = None if n_tokens is None else n_tokens - 1
    dimensions = tuple(kept) or None
    return MultipleTopKSpec(groups, k, token_index, pass_type, dimensions, omits_sums=spec.message.omit_sums)


def _groups(
    spec: MessageReader[MultipleTopKMessage],
) -> tuple[tuple[GroupId, tuple[DerivedScalar, ...]], ...] | None:
    if not spec.message.groups:
        spec.refuse("groups", "at least one group is required", Reason.FIELD_REQUIRED)
        return None
    if not spec.only("groups", len(GroupId), "groups"):
        return None
    entries: list[MessageReader[DerivedScalarGroup]] = spec.entries("groups")
    groups: dict[GroupId, tuple[DerivedScalar, ...]] = {}
    for one in entries:
        group = one.member("group_id", GROUP_IDS)
        if not one.message.derived_scalar_types:
            description = "at least one derived scalar is required"
            one.refuse("derived_scalar_types", description, Reason.FIELD_REQUIRED)
        scalars = one.members("derived_scalar_types", DERIVED_SCALARS, "derived scalars")
        if group in groups:
            one.refuse("group_id", "the group is given twice", Reason.DUPLICATE_NAME)
        elif group is not None and scalars:
            groups[group] = tuple(scalars)
    return tuple(groups.items()) if len(groups) == len(entries) else None


def _lens(spec: MessageReader[LensMessage], n_tokens: int | None) -> LensSpec | None:
    n_layers = spec.request.info.n_layers
    hook_point = spec.member("place", HOOK_POINTS, HookPoint.RESID_POST_MLP)
    vocabulary_tokens = spec.single_tokens("vocab_token")
    n_top_tokens = spec.optional("num_top_tokens")
    if n_top_tokens is not None and n_top_tokens < 1:
        spec.refuse("num_top_tokens", f"must be 1 or more, not {n_top_tokens}", Reason.OUT_OF_RANGE)
        return None
    if hook_point is None or vocabulary_tokens is None or not spec.only("layer_indices", n_layers, "layers"):
        return None
    tokens = _token_indices(spec, n_tokens, [-1])
    layers = tuple(spec.message.layer_indices) or tuple(range(n_layers))
    if tokens is None:
        return None
    return LensSpec(hook_point, layers, tokens, vocabulary_tokens, n_top_tokens or 0)


def _activations(spec: MessageReader[ActivationsMessage], n_tokens: int | None) -> ActivationsSpec | None:
    info = spec.request.info
    hook_point = spec.member("activation_location_type", HOOK_POINTS)
    pass_type = spec.member("pass_type", PASS_TYPES, PassType.FORWARD)
    if hook_point is None or pass_type is None or not spec.only("layer_indices", info.n_layers, "layers"):
        return None
    layers: tuple[int | None, ...] = tuple(spec.message.layer_indices)
    if not layers and not hook_point.is_per_layer:
        layers = (None,)
    elif not layers:
        dictionaries = autoencoders_of_hook_point(hook_point, info)
        layers = dictionaries[0].layers if len(dictionaries) == 1 else tuple(range(info.n_layers))
    tokens = _token_indices(spec, n_tokens, range(n_tokens or 0))
    return None if tokens is None else ActivationsSpec(hook_point, layers, tokens, pass_type)


def _token_indices(
    spec: MessageReader[LensMessage] | MessageReader[ActivationsMessage],
    n_tokens: int | None,
    default: Sequence[int],
) -> tuple[int, ...] | None:
    """The tokens that are named, counted from the start; None where there are too many, or no prompt."""
    if n_tokens is None or not spec.only("token_indices", n_tokens, "tokens"):
        return None
    indices = spec.message.token_indices or default
    return tuple(n_tokens - 1 if one == -1 else one for one in indices)


def _component_totals(spec: MessageReader[ComponentTotalsMessage]) -> ComponentTotalsSpec | None:
    field = "derived_scalar_types"
    if not spec.value(field):
        spec.refuse(field, "at least one derived scalar is required", Reason.FIELD_REQUIRED)
    scalars = spec.members(field, DERIVED_SCALARS, "derived scalars")
    return ComponentTotalsSpec(tuple(scalars), spec.message.by_token) if scalars else None


def _derived_scalars(spec: MessageReader[DerivedScalarsMessage]) -> DerivedScalarsSpec | None:
    scalar = spec.member("derived_scalar_type", DERIVED_SCALARS)
    pass_type = spec.member("pass_type", PASS_TYPES, PassType.FORWARD)
    if scalar is None or pass_type is None:
        return None
    return DerivedScalarsSpec(
        scalar,
        spec.optional("layer_index"),
        spec.message.activation_index,
        pass_type,
        spec.optional("normalizer"),
        spec.optional("num_top_tokens"),
        spec.message.normalize_by_prompt_maximum,
    )


def _derived_attention_scalars(
    spec: MessageReader[DerivedAttentionScalarsMessage],
) -> DerivedAttentionScalarsSpec | None:
    scalar, layer_index = spec.member("derived_scalar_type", DERIVED_SCALARS), spec.optional("layer_index")
    if layer_index is None:
        spec.refuse("layer_index", "a layer is needed", Reason.FIELD_REQUIRED)
    if scalar is None or layer_index is None:
        return None
    maxima = map(spec.optional, ("max_scalar", "max_total_scalar_in", "max_total_scalar_out"))
    return DerivedAttentionScalarsSpec(scalar, layer_index, spec.message.activation_index, *maxima)


def _scored_tokens(spec: MessageReader[ScoredTokensMessage]) -> ScoredTokensSpec | None:
    scoring, message = spec.member("token_scoring_type", TOKEN_SCORING_TYPES), spec.message
    return None if scoring is None else ScoredTokensSpec(message.depends_on, scoring, message.num_tokens)

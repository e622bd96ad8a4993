"""Checks between what is wanted: groups of one ranking, rankings of one name, and what depends on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tdb_server.domain.axes import specific_hook_point
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.index_validation import activation_violations
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import ActivationIndex, MultipleTopKSpec, ProcessingSpec
from tdb_server.errors import FieldViolation

_N_CHARACTERS = 64
Kind = tuple[NodeType, bool]
"""A kind of node: its type, and whether it is in a layer. Nodes of a kind are told apart by their indices."""


def kind_violations(spec: MultipleTopKSpec, path: str) -> Iterator[FieldViolation]:
    """Groups that rank a kind of node twice, or not the kinds that the first group ranks."""
    first: dict[Kind, tuple[Dimension, ...]] | None = None
    for i, (_, scalars) in enumerate(spec.groups):
        kinds: dict[Kind, tuple[Dimension, ...]] = {}
        for j, scalar in enumerate(scalars):
            kind = kind_of(scalar)
            if kind in kinds:
                yield FieldViolation(
                    f"{path}.groups[{i}].derived_scalar_types[{j}]",
                    f"the group has another derived scalar for nodes of type {kind[0].value}",
                    Reason.DERIVED_SCALAR_DOES_NOT_FIT,
                )
            kinds[kind] = scalar.declared.dimensions
        if first is None:
            first = kinds
        elif kinds != first:
            yield FieldViolation(
                f"{path}.groups[{i}].derived_scalar_types",
                "every group must have a derived scalar for the same kinds of node as the first group",
                Reason.DERIVED_SCALAR_DOES_NOT_FIT,
            )


def kind_of(scalar: DerivedScalar) -> Kind:
    """The kind of node that a derived scalar is a number of."""
    shape = scalar.declared
    return shape.node_type, shape.is_per_layer


def dependency_violations(
    depends_on: str, specs: Mapping[str, ProcessingSpec | None], path: str
) -> Iterator[FieldViolation]:
    """A spec that depends on one which is not there, or which ranks no nodes.

    Of the sub-request's specs, by name, those that were refused already are None.
    """
    if not depends_on:
        yield FieldViolation(path, "name the multiple_top_k spec it depends on", Reason.FIELD_REQUIRED)
    elif depends_on not in specs:
        yield FieldViolation(
            path,
            f"the sub-request has no processing spec called {depends_on[:_N_CHARACTERS]!r}",
            Reason.UNKNOWN_DEPENDENCY,
        )
    elif not isinstance(specs[depends_on], MultipleTopKSpec | None):
        yield FieldViolation(
            path, f"{depends_on!r} is not a multiple_top_k spec, so it has no nodes", Reason.WRONG_DEPENDENCY
        )


def difference_violations(rankings: Sequence[tuple[str, str, MultipleTopKSpec]]) -> Iterator[FieldViolation]:
    """Rankings of one name whose nodes cannot be joined across the sub-requests of a call.

    Args:
        rankings: `(path, name, spec)` of every ranking of the call, in order.
    """
    first: dict[str, tuple[str, MultipleTopKSpec]] = {}
    for path, name, spec in rankings:
        first_path, first_spec = first.setdefault(name, (path, spec))
        if (dict(spec.groups), spec.pass_type) != (dict(first_spec.groups), first_spec.pass_type):
            yield FieldViolation(
                path,
                f"ranks other derived scalars than {first_path}; specs of one name share their nodes",
                Reason.SPECS_DIFFER,
            )


def within_layer_gradient_violations(
    index: ActivationIndex, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps an index from naming one attention latent at every token."""
    if not index.hook_point.node_type.is_latent:
        yield FieldViolation(
            f"{path}.activation_location_type", "must be a hook point of latents", Reason.FIELD_NOT_ALLOWED
        )
        return
    refused = list(activation_violations(index, info, n_tokens, path))
    yield from refused
    if index.pass_type is not PassType.FORWARD:
        yield FieldViolation(f"{path}.pass_type", "must be forward", Reason.FIELD_NOT_ALLOWED)
    if refused:
        return
    token, latent = index.tensor_indices
    if token is not None:
        yield FieldViolation(
            f"{path}.tensor_indices[0]",
            'must be "all": the latent is read at every token',
            Reason.FIELD_NOT_ALLOWED,
        )
    if latent is None:
        yield FieldViolation(f"{path}.tensor_indices[1]", "must be one latent", Reason.FIELD_REQUIRED)
    if specific_hook_point(index.hook_point, info) is not HookPoint.ONLINE_ATTENTION_AUTOENCODER_LATENT:
        yield FieldViolation(
            f"{path}.activation_location_type",
            "attention's writes to a latent are those to a latent of the attention's autoencoder",
            Reason.FIELD_NOT_ALLOWED,
        )

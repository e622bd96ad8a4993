"""Whether a sub-request's results are made of a gradient; without one, a forward pass is enough."""

from __future__ import annotations

from collections.abc import Iterator

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    MultipleTopKSpec,
)


def needs_gradient(sub_request: InferenceSubRequest) -> bool:
    """Whether anything that is wanted is made from a gradient of the objective, whose value alone is not."""
    if any(isinstance(one, EdgesSpec) for one in sub_request.processing.values()):
        return True
    gradients = (one.pass_type for one in sub_request.processing.values() if isinstance(one, ActivationsSpec))
    return PassType.BACKWARD in gradients or any(
        scalar.declared.needs_objective(pass_type) for scalar, pass_type in wanted_scalars(sub_request)
    )


def wanted_scalars(sub_request: InferenceSubRequest) -> Iterator[tuple[DerivedScalar, PassType]]:
    """The derived scalars that its specs name, each with the pass whose numbers are wanted."""
    for spec in sub_request.processing.values():
        match spec:
            case MultipleTopKSpec():
                yield from ((scalar, spec.pass_type) for scalar, _ in spec.chosen)
            case DerivedScalarsSpec():
                yield spec.derived_scalar, spec.pass_type
            case ComponentTotalsSpec():
                yield from ((scalar, PassType.FORWARD) for scalar in spec.derived_scalars)
            case DerivedAttentionScalarsSpec():
                yield spec.derived_scalar, PassType.FORWARD

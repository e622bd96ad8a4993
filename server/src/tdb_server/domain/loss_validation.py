"""Checks of a loss: what its name needs, what it does not take, and where it is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.index_validation import absence_violations, layer_violations
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import LossName, ResidualDirection
from tdb_server.errors import FieldViolation

_STREAMS = (HookPoint.RESID_POST_EMB, HookPoint.RESID_POST_ATTN, HookPoint.RESID_POST_MLP)
_WEIGHTED = (LossName.LOGIT_DIFF, LossName.LOG_PROB)


def weight_violations(
    name: LossName, weights: Sequence[float], n_targets: int | None, path: str
) -> Iterator[FieldViolation]:
    """Weights of targets that this loss does not have, that are too few or too many, or no numbers.

    Args:
        n_targets: how many targets there are; None where they are refused.
    """
    if name not in _WEIGHTED:
        yield FieldViolation(path, f"{name.value} has no weights of targets", Reason.FIELD_NOT_ALLOWED)
    elif n_targets is not None and len(weights) != n_targets:
        yield FieldViolation(
            path, f"{len(weights)} weights for {n_targets} target tokens", Reason.OUT_OF_RANGE
        )
    for i, one in enumerate(weights):
        if not math.isfinite(one):
            yield FieldViolation(f"{path}[{i}]", f"{one} is not a finite number", Reason.NOT_FINITE)


def direction_violations(
    direction: ResidualDirection, info: ModelInfo, path: str
) -> Iterator[FieldViolation]:
    """A place that is no residual stream of the model, or a vector that is none of it."""
    hook_point, place_path = direction.hook_point, f"{path}.place"
    if hook_point not in _STREAMS:
        known = ", ".join(one.value for one in _STREAMS)
        yield FieldViolation(
            place_path, f"{hook_point.value} is no residual stream: {known}", Reason.FIELD_NOT_ALLOWED
        )
    else:
        yield from absence_violations(hook_point, info, place_path)
        yield from layer_violations(
            direction.layer_index, hook_point.is_per_layer, info, f"{path}.layer_index"
        )
    if len(direction.vector) != info.d_model:
        yield FieldViolation(
            f"{path}.vector",
            f"has {len(direction.vector)} numbers; the residual stream has {info.d_model}",
            Reason.OUT_OF_RANGE,
        )
    for i, one in enumerate(direction.vector):
        if not math.isfinite(one):
            yield FieldViolation(f"{path}.vector[{i}]", f"{one} is not a finite number", Reason.NOT_FINITE)
            return

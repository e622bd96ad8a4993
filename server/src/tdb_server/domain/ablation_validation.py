"""Checks of what is set: nodes and hook points that can be ablated, and values that can be set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from tdb_server.domain.axes import hook_point_axes
from tdb_server.domain.hook_point import (
    ABLATABLE_HOOK_POINTS,
    DICTIONARY_HOOK_POINTS,
    HookPoint,
)
from tdb_server.domain.index_validation import activation_violations, node_violations
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AblationSpec, NodeAblation, ValueType
from tdb_server.errors import FieldViolation

_LARGEST = {
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
    "bfloat16": 3.3895313892515355e38,
}
"""The largest finite number of each type that a model computes in."""
_PAIR_HOOK_POINTS = frozenset({HookPoint.ATTN_QK_LOGITS, HookPoint.ATTN_QK_PROBS})
_ERRORS = frozenset(error for _, error in DICTIONARY_HOOK_POINTS.values())
_SET_ALONE = frozenset({HookPoint.LOGITS, *_ERRORS})
"""Logits and the errors of dictionaries are not kept of baselines, nor made before they are asked for."""


def node_ablation_violations(
    ablation: NodeAblation, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps a node from being ablated."""
    yield from _value_violations(ablation, info, path)
    node_type = ablation.node.node_type
    if ablation.attended_to_token_only and node_type is not NodeType.ATTENTION_HEAD:
        yield FieldViolation(
            f"{path}.attended_to_token_only", "is for attention heads", Reason.FIELD_NOT_ALLOWED
        )
    if node_type in ABLATABLE_HOOK_POINTS:
        yield from node_violations(ablation.node, info, n_tokens, f"{path}.node_index")
    else:
        yield FieldViolation(
            f"{path}.node_index.node_type",
            f"nodes of type {node_type.value} cannot be ablated; neurons, heads, MLPs and latents can",
            Reason.NODE_NOT_ABLATABLE,
        )


def ablation_violations(
    ablation: AblationSpec, info: ModelInfo, n_tokens: int | None, has_objective: bool, path: str
) -> Iterator[FieldViolation]:
    """What keeps activations from being set, or gradients, for which there must be an objective."""
    yield from _value_violations(ablation, info, path)
    wrong_index = list(activation_violations(ablation.index, info, n_tokens, f"{path}.index"))
    yield from wrong_index
    if not wrong_index and ablation.direction is not None:
        yield from _direction_violations(ablation, ablation.direction, info, path)
    if ablation.index.pass_type is PassType.BACKWARD and not has_objective:
        yield FieldViolation(
            f"{path}.index.pass_type",
            "gradients can only be set where a loss or a trace is given",
            Reason.OBJECTIVE_REQUIRED,
        )


def _direction_violations(
    ablation: AblationSpec, direction: tuple[float, ...], info: ModelInfo, path: str
) -> Iterator[FieldViolation]:
    """A direction that is not one of the last axis, or that nothing is added along."""
    index, path = ablation.index, f"{path}.direction"
    if ablation.value_type is not ValueType.ADD:
        yield FieldViolation(path, "only what is added has a direction", Reason.FIELD_NOT_ALLOWED)
    elif index.tensor_indices[-1] is not None or index.hook_point in _PAIR_HOOK_POINTS:
        description = "is of a whole last axis of channels, neurons or latents, whose index must be all"
        yield FieldViolation(path, description, Reason.FIELD_NOT_ALLOWED)
    else:
        length = hook_point_axes(index.hook_point, info, 1)[-1]
        if len(direction) != length:
            description = f"has {len(direction)} numbers; {index.hook_point.value} has {length}"
            yield FieldViolation(path, description, Reason.WRONG_NUMBER_OF_INDICES)
        elif not all(map(math.isfinite, direction)):
            yield FieldViolation(path, "has a number that is not finite", Reason.NOT_FINITE)


def baseline_violations(
    ablations: Iterable[tuple[str, AblationSpec]], has_baselines: bool
) -> Iterator[FieldViolation]:
    """Ablations, by path, to the value of baselines that there are not."""
    for path, one in ablations:
        if one.value_type is ValueType.BASELINE and not has_baselines:
            description = "sets it to the baseline's, which needs a baseline prompt"
            yield FieldViolation(f"{path}.value_type", description, Reason.BASELINE_REQUIRED)


def _value_violations(
    ablation: AblationSpec | NodeAblation, info: ModelInfo, path: str
) -> Iterator[FieldViolation]:
    value, value_type = ablation.value, ablation.value_type
    if value_type is ValueType.BASELINE and value != 0:
        description = "what it is in the baseline prompts is no number that is given here"
        yield FieldViolation(f"{path}.value", description, Reason.FIELD_NOT_ALLOWED)
    if isinstance(ablation, AblationSpec) and value_type is not ValueType.NUMBER:
        if ablation.index.pass_type is PassType.BACKWARD:
            description = "gradients can be set to a number alone"
            yield FieldViolation(f"{path}.value_type", description, Reason.FIELD_NOT_ALLOWED)
        elif ablation.index.hook_point in _SET_ALONE:
            description = f"{ablation.index.hook_point.value} can be set to a number alone"
            yield FieldViolation(f"{path}.value_type", description, Reason.FIELD_NOT_ALLOWED)
    if not math.isfinite(value):
        yield FieldViolation(f"{path}.value", f"{value} is not a finite number", Reason.NOT_FINITE)
    elif abs(value) > _LARGEST[info.dtype]:
        yield FieldViolation(
            f"{path}.value",
            f"{value:g} is too large for {info.dtype}, which the model computes in",
            Reason.OUT_OF_RANGE,
        )

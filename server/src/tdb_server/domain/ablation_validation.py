"""Checks of what is set: nodes and hook points that can be ablated, and values that can be set."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tdb_server.domain.hook_point import NODE_HOOK_POINTS
from tdb_server.domain.index_validation import activation_violations, node_violations
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AblationSpec, NodeAblation
from tdb_server.errors import FieldViolation

_LARGEST = {
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
    "bfloat16": 3.3895313892515355e38,
}
"""The largest finite number of each type that a model computes in."""


def node_ablation_violations(
    ablation: NodeAblation, info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps a node from being ablated."""
    yield from _value_violations(ablation.value, info, path)
    node_type = ablation.node.node_type
    if ablation.attended_to_token_only and node_type is not NodeType.ATTENTION_HEAD:
        yield FieldViolation(
            f"{path}.attended_to_token_only", "is for attention heads", Reason.FIELD_NOT_ALLOWED
        )
    if node_type in NODE_HOOK_POINTS:
        yield from node_violations(ablation.node, info, n_tokens, f"{path}.node_index")
    else:
        yield FieldViolation(
            f"{path}.node_index.node_type",
            f"nodes of type {node_type.value} cannot be ablated; neurons, attention heads and latents can",
            Reason.NODE_NOT_ABLATABLE,
        )


def ablation_violations(
    ablation: AblationSpec, info: ModelInfo, n_tokens: int | None, has_objective: bool, path: str
) -> Iterator[FieldViolation]:
    """What keeps activations from being set, or gradients, for which there must be an objective."""
    yield from _value_violations(ablation.value, info, path)
    yield from activation_violations(ablation.index, info, n_tokens, f"{path}.index")
    if ablation.index.pass_type is PassType.BACKWARD and not has_objective:
        yield FieldViolation(
            f"{path}.index.pass_type",
            "gradients can only be set where a loss or a trace is given",
            Reason.OBJECTIVE_REQUIRED,
        )


def _value_violations(value: float, info: ModelInfo, path: str) -> Iterator[FieldViolation]:
    if not math.isfinite(value):
        yield FieldViolation(f"{path}.value", f"{value} is not a finite number", Reason.NOT_FINITE)
    elif abs(value) > _LARGEST[info.dtype]:
        yield FieldViolation(
            f"{path}.value",
            f"{value:g} is too large for {info.dtype}, which the model computes in",
            Reason.OUT_OF_RANGE,
        )

"""What went wrong, for the page: the fields are those of its question, whoever has refused them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tdb_client.errors import CallError, FieldViolation, InvalidValueError, NodeError, TdbError
from tdb_client.workbench.body_reader import QuestionError

_FIELDS = {
    "prompt": "prompt",
    "text": "text",
    "add_bos": "addBos",
    "target_tokens": "target",
    "target": "target",
    "target_token_ids": "targetIds",
    "distractor_tokens": "distractor",
    "distractor": "distractor",
    "distractor_token_ids": "distractorIds",
    "baseline_prompts": "baseline",
    "baseline": "baseline",
    "node_ablations": "changes",
    "ablation_specs": "changes",
    "ablate": "changes",
    "upstream_node_to_trace": "trace",
    "node_to_trace": "trace",
    "trace_config": "trace",
    "trace": "trace",
    "downstream_node_to_trace": "downstream",
    "downstream": "downstream",
    "component_type_for_mlp": "mlp",
    "component_type_for_attention": "attention",
    "component_types_for_residual_stream": "residualStream",
    "top_and_bottom_k": "k",
    "top_k": "topK",
    "steps": "steps",
    "method": "method",
    "hide_early_layers_when_ablating": "hideEarlyLayers",
    "backward_rule": "rule",
    "nodes": "onlyThese",
    "only_these": "onlyThese",
    "node_types": "nodeTypes",
    "layer_index": "layer",
    "activation_index": "head",
    "token_indices": "at",
    "vocab_tokens": "target",
    "name": "loss.name",
    "token_index": "loss.token",
    "loss_fn_config": "loss",
    "loss": "loss",
}
"""What fields of messages, and of sub-requests, are called in the question."""

_AROUND = frozenset({"sub_requests", "inference_spec", "loss_fn_config", "loss", "only_these"})
"""Fields around those: where more of the path follows, that says it better."""

_PATH = re.compile(r"sub_requests\[\d+\][\w.\[\]]*")
_PART = re.compile(r"(\w+)((?:\[\d+\])?)")


@dataclass(frozen=True, slots=True)
class Fault:
    """What the page is told.

    Attributes:
        status: name of the gRPC status, such as `INVALID_ARGUMENT`.
        reason: why, by a name of the protos' ErrorReason.
        message: what went wrong, in words.
        violations: the fields at fault.
        retry_after: seconds after which the same may work; None when it will not.
    """

    status: str
    reason: str
    message: str
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None

    @property
    def body(self) -> dict[str, object]:
        """As JSON, for the page."""
        return {
            "message": self.message,
            "violations": [
                {"field": one.path, "description": one.description, "reason": one.reason}
                for one in self.violations
            ],
        }


def fault(error: TdbError) -> Fault:
    """What the page is told of an error."""
    match error:
        case QuestionError():
            violations = error.violations
        case NodeError():
            violations = (FieldViolation(_field(error.path), str(error), "MALFORMED_REQUEST"),)
        case InvalidValueError():
            violations = (FieldViolation(_field(error.path), error.description, "OUT_OF_RANGE"),)
        case CallError():
            # Without and with changes, the same is mostly wrong twice.
            found = dict.fromkeys(map(_of_question, error.field_violations))
            words = "; ".join(map(str, found)) or str(error)
            return Fault(error.status, error.reason or error.status, words, tuple(found), error.retry_after)
        case _:
            return Fault("INTERNAL", "INTERNAL", str(error))
    return Fault("INVALID_ARGUMENT", violations[0].reason, "; ".join(map(str, violations)), violations)


def _of_question(told: FieldViolation) -> FieldViolation:
    """The same by the names of the question, also where a description names a field."""
    description = _PATH.sub(lambda path: _field(path[0]), told.description)
    return replace(told, path=_field(told.path), description=description)


def _field(path: str) -> str:
    """A field by its name in the question; the path as it is where the question has nothing like it."""
    found: list[tuple[str, str]] = _PART.findall(path)
    parts = [(name, index) for name, index in found if name in _FIELDS]
    inner = [(name, index) for name, index in parts if name not in _AROUND]
    for name, index in [*inner, *parts][:1]:
        return _FIELDS[name] + index
    return path

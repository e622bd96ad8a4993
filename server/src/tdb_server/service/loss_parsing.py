"""From the wire's loss to the domain's."""

from __future__ import annotations

from typing import Any

from transformer_debugger.v1 import loss_pb2
from transformer_debugger.v1.loss_pb2 import LossFnConfig
from transformer_debugger.v1.loss_pb2 import ResidualDirection as ResidualDirectionMessage

from tdb_server.domain.index_validation import range_violations
from tdb_server.domain.loss_validation import direction_violations, weight_violations
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import LossConfig, LossName, ResidualDirection
from tdb_server.service.enum_names import HOOK_POINTS, LOSS_NAMES
from tdb_server.service.request_reader import MessageReader

_WITHOUT_TARGETS = (LossName.KL_FROM_BASELINE, LossName.DIRECTION)


def parse_loss(run: MessageReader[Any], n_tokens: int | None) -> LossConfig | None:
    """The loss of a run; None where there is none or it is refused. What is wrong is noted in the reader.

    Args:
        run: a message with a loss and baselines.
        n_tokens: tokens of the prompt; None where it is refused.
    """
    if not run.has("loss_fn_config"):
        return None
    loss: MessageReader[LossFnConfig] = run.inner("loss_fn_config")
    n_violations = loss.request.n_violations
    name = loss.member("name", LOSS_NAMES)
    if name is LossName.KL_FROM_BASELINE and not run.value("baseline_prompts"):
        description = "this loss is a divergence from what baselines predict; give at least one"
        run.refuse("baseline_prompts", description, Reason.BASELINE_REQUIRED)
    targets, distractors = loss.targets_and_distractors()
    if name is not None:
        _check_tokens(loss, name, targets)
    weights = tuple(loss.message.target_weights) or None
    if name is not None and weights is not None:
        n_targets = None if targets is None else len(targets)
        loss.request.note(weight_violations(name, weights, n_targets, loss.at("target_weights")))
    token_index = _token_index(loss, n_tokens)
    direction = _direction(loss, name)
    if name is None or targets is None or distractors is None or loss.request.n_violations > n_violations:
        return None
    return LossConfig(name, targets, distractors, token_index, weights, direction)


def check_loss_of_value(loss: MessageReader[LossFnConfig]) -> None:
    """Refuses a direction as what a value is traced towards."""
    if loss.message.name == loss_pb2.LOSS_FN_NAME_DIRECTION:
        description = "a head traced through V is projected onto what logits read, or onto a downstream node"
        loss.refuse("name", description, Reason.FIELD_NOT_ALLOWED)


def _check_tokens(loss: MessageReader[LossFnConfig], name: LossName, targets: tuple[int, ...] | None) -> None:
    if name not in (LossName.ZERO, *_WITHOUT_TARGETS) and targets == ():
        loss.refuse("target_tokens", "this loss needs at least one target token", Reason.FIELD_REQUIRED)
    if name in _WITHOUT_TARGETS:
        for field in ("target_tokens", "target_token_ids"):
            if loss.value(field):
                loss.refuse(field, "this loss has no targets", Reason.FIELD_NOT_ALLOWED)
    if name is not LossName.LOGIT_DIFF:
        for field in ("distractor_tokens", "distractor_token_ids"):
            if loss.value(field):
                loss.refuse(field, "this loss has no distractors", Reason.FIELD_NOT_ALLOWED)


def _token_index(loss: MessageReader[LossFnConfig], n_tokens: int | None) -> int | None:
    """The token that is named; None for the last."""
    token_index = loss.optional("token_index")
    if token_index is None or token_index in (-1, None if n_tokens is None else n_tokens - 1):
        return None
    loss.request.note(range_violations(token_index, n_tokens, "token", loss.at("token_index")))
    return int(token_index)


def _direction(loss: MessageReader[LossFnConfig], name: LossName | None) -> ResidualDirection | None:
    if name is not LossName.DIRECTION:
        if name is not None and loss.has("direction"):
            loss.refuse("direction", f"{name.value} has no direction", Reason.FIELD_NOT_ALLOWED)
        return None
    if not loss.requires("direction"):
        return None
    message: MessageReader[ResidualDirectionMessage] = loss.inner("direction")
    hook_point = message.member("place", HOOK_POINTS)
    if hook_point is None:
        return None
    found = ResidualDirection(hook_point, message.optional("layer_index"), tuple(message.message.vector))
    loss.request.note(direction_violations(found, loss.request.info, message.path))
    return found

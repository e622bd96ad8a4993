"""Losses at any token, of log-probabilities, weighted, and along directions: values, slopes, what adds up."""

from __future__ import annotations

import pytest
import torch
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DerivedScalarsSpec,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ResidualDirection,
    Trace,
)
from tdb_server.domain.results import DerivedScalarsResult
from torch import Tensor

from tests.property.finite_differences import STEP, assert_same
from tests.property.plain_model import Seen
from tests.property.requests import (
    answer,
    answers_of_calls,
    every_node,
    inference,
    numbers_by_node,
    numbers_of_layer,
)
from tests.property.same_answers import Nodes, assert_same_answers
from tests.property.small_models import SmallModel, small_model

PROMPT = (8, 30, 21, 55)
VECTOR = tuple(torch.randn(16, generator=torch.Generator().manual_seed(3)).tolist())
TARGETS, DISTRACTORS, WEIGHTS = (1, 2), (3, 7), (0.5, -2.0)


def along(place: HookPoint, layer: int | None, token: int | None = None) -> LossConfig:
    direction = ResidualDirection(place, layer, VECTOR)
    return LossConfig(LossName.DIRECTION, token_index=token, direction=direction)


LOSSES = {
    "difference at a token": LossConfig(LossName.LOGIT_DIFF, TARGETS, DISTRACTORS, 1),
    "weighted difference": LossConfig(LossName.LOGIT_DIFF, TARGETS, DISTRACTORS, 2, WEIGHTS),
    "above the mean at the first": LossConfig(LossName.LOGIT_MINUS_MEAN, TARGETS, token_index=0),
    "probabilities at a token": LossConfig(LossName.PROBS, TARGETS, token_index=1),
    "log-probabilities": LossConfig(LossName.LOG_PROB, TARGETS),
    "weighted log-probabilities": LossConfig(LossName.LOG_PROB, TARGETS, (), 2, WEIGHTS),
    "along the embedding": along(HookPoint.RESID_POST_EMB, None, 2),
    "along the first layer": along(HookPoint.RESID_POST_MLP, 0),
    "along the last layer": along(HookPoint.RESID_POST_MLP, 1, 1),
}


def expected_value(loss: LossConfig, seen: Seen, cap: float | None) -> Tensor:
    """By the definition, of every copy."""
    token = -1 if loss.token_index is None else loss.token_index
    if loss.direction is not None:
        stream = seen[loss.direction.hook_point, loss.direction.layer_index][:, token]
        return stream @ torch.tensor(VECTOR, dtype=torch.float64)
    capped = seen[HookPoint.LOGITS, None][:, token]
    logits = capped if cap is None else cap * (capped / cap).atanh()
    weights = torch.tensor(loss.target_weights or (1 / len(TARGETS),) * len(TARGETS), dtype=torch.float64)
    of_targets = (logits[:, list(TARGETS)] * weights).sum(dim=1)
    match loss.name:
        case LossName.LOGIT_DIFF:
            return of_targets - logits[:, list(DISTRACTORS)].mean(dim=1)
        case LossName.LOGIT_MINUS_MEAN:
            return of_targets - logits.mean(dim=1)
        case LossName.PROBS:
            return capped.softmax(dim=1)[:, list(TARGETS)].sum(dim=1)
        case LossName.LOG_PROB:
            return (capped.log_softmax(dim=1)[:, list(TARGETS)] * weights).sum(dim=1)
        case other:
            raise ValueError(other)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_the_value_and_its_slopes_at_the_embeddings(name: str, loss: str) -> None:
    model, config = small_model(name), LOSSES[loss]

    def value(token: int, step: float) -> Tensor:
        def scaled(x: Tensor) -> Tensor:
            factors = torch.ones(x.shape[1], 1, dtype=x.dtype)
            factors[token] += step
            return x * factors

        seen = model.plain.run(PROMPT, {(HookPoint.RESID_POST_EMB, None): scaled})
        return expected_value(config, seen, model.plain.logit_cap)

    found = answer(
        model.engine(),
        InferenceSpec(PROMPT, config),
        embeddings=every_node(DerivedScalar.TOKEN_ATTRIBUTION),
    )
    assert found.loss == pytest.approx(value(0, 0.0).item(), abs=1e-6)
    slopes = torch.cat([value(t, STEP) - value(t, -STEP) for t in range(len(PROMPT))]) / (2 * STEP)
    computed = numbers_of_layer(found.top_k("embeddings"), None, (len(PROMPT), 1))
    assert_same(slopes[:, None], computed)
    assert answer(model.engine(), InferenceSpec(PROMPT, config)).loss == pytest.approx(found.loss, abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "n_layers"),
    [
        (along(HookPoint.RESID_POST_EMB, None, 1), 0),
        (along(HookPoint.RESID_POST_ATTN, 1, 2), 2),
        (along(HookPoint.RESID_POST_MLP, 0), 1),
    ],
)
def test_direct_effects_add_up_to_what_is_along_a_direction(loss: LossConfig, n_layers: int) -> None:
    """Of a model without biases; what is written after the place has none."""
    scalars = (
        DerivedScalar.RESID_POST_EMBEDDING_PROJ_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD,
    )
    effects = every_node(*scalars)
    found = answer(small_model("llama").engine(), inference(PROMPT, loss), effects=effects)
    numbers = numbers_by_node(found.top_k("effects"))
    assert sum(numbers.values()) == pytest.approx(found.loss, abs=1e-9)
    assert {node.layer_index for node in numbers} == {None, *range(n_layers)}
    mlps = {node.layer_index for node in numbers if node.node_type.value == "mlp_neuron"}
    place = loss.direction and loss.direction.hook_point
    assert mlps == set(range(n_layers - (place is HookPoint.RESID_POST_ATTN)))


def gradients_of_logit(model: SmallModel, loss: LossConfig, set_at: int) -> list[float]:
    index = ActivationIndex(HookPoint.LOGITS, None, (set_at, 1), PassType.BACKWARD)
    found = answer(
        model.engine(),
        InferenceSpec(PROMPT, loss, None, (AblationSpec(index, -0.7),)),
        logits=DerivedScalarsSpec(DerivedScalar.LOGITS, None, 1, PassType.BACKWARD),
        values=DerivedScalarsSpec(DerivedScalar.LOGITS, None, 1),
    )
    values, gradients = found.results["values"], found.results["logits"]
    assert isinstance(values, DerivedScalarsResult)
    assert isinstance(gradients, DerivedScalarsResult)
    assert_same(model.plain.run(PROMPT)[HookPoint.LOGITS, None][0, :, 1], torch.tensor(values.activations))
    return gradients.activations.tolist()


def test_logits_and_their_gradients_beside_the_token_of_the_loss() -> None:
    model, loss = small_model("gpt2"), LossConfig(LossName.LOGIT_DIFF, TARGETS, DISTRACTORS, 1)
    assert gradients_of_logit(model, loss, 1) == [0, -0.7, 0, 0]
    assert gradients_of_logit(model, loss, 3) == [0, 0.5, 0, -0.7]
    assert gradients_of_logit(model, along(HookPoint.RESID_POST_MLP, 0), 3) == [0, 0, 0, 0]


def test_rows_of_all_losses_and_a_trace_in_one_batch() -> None:
    """Each gets what it gets alone, also where a gradient is set behind its place."""
    engine = small_model("gemma2").engine()
    scalars = (
        DerivedScalar.TOKEN_ATTRIBUTION,
        DerivedScalar.MLP_WRITE_TO_FINAL_RESIDUAL_GRAD,
        DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD,
    )
    behind = ActivationIndex(HookPoint.RESID_DELTA_MLP, 1, (1, 3), PassType.BACKWARD)
    runs = [inference(PROMPT, loss, None, [AblationSpec(behind, 0.9)]) for loss in LOSSES.values()]
    runs.append(inference(PROMPT[:2], None, Trace(NodeIndex(NodeType.MLP_NEURON, 1, (1, 3)))))
    calls = [[InferenceSubRequest(run, {"nodes": every_node(*scalars)})] for run in runs]
    for together, call in zip(answers_of_calls(engine, calls), calls, strict=True):
        (alone,) = answers_of_calls(engine, [call])[0]
        assert_same_answers(together[0], alone, 1e-12, Nodes.NOT_ZERO)

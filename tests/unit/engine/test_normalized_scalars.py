"""Activations relative to a maximum: a given one, or the prompt's own."""

from __future__ import annotations

import numpy as np
import pytest
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSpec,
    LossConfig,
    LossName,
)
from tdb_server.domain.results import DerivedAttentionScalarsResult, DerivedScalarsResult
from tdb_server.engine.component_scalars import normalized_by

from tests.property.requests import answer
from tests.property.small_models import small_model

PROMPT = (3, 9, 27, 41)


def neuron(activations: tuple[float, ...], **wanted: float | bool) -> DerivedScalarsResult:
    """A neuron that ablations give these activations."""
    ablations = tuple(
        AblationSpec(ActivationIndex(HookPoint.MLP_POST_ACT, 1, (token, 4), PassType.FORWARD), value)
        for token, value in enumerate(activations)
    )
    spec = DerivedScalarsSpec(DerivedScalar.MLP_POST_ACT, 1, 4, **wanted)  # type: ignore[arg-type]
    result = answer(small_model("gpt2").engine(), InferenceSpec(PROMPT, ablations=ablations), one=spec)
    found = result.results["one"]
    assert isinstance(found, DerivedScalarsResult)
    return found


def test_the_prompts_own_maximum() -> None:
    found = neuron((0.5, -3.0, 2.0, 1.0), normalizes_by_prompt_maximum=True)
    assert found.normalized_activations is not None
    np.testing.assert_allclose(found.normalized_activations, [0.25, 0, 1, 0.5])


@pytest.mark.parametrize("activations", [(-0.5, -3.0, -2.0, -1.0), (0.0, 0.0, 0.0, 0.0), (0.0, -1, -2, -3)])
def test_nothing_is_above_zero(activations: tuple[float, ...]) -> None:
    """Zeros, and none with a minus sign."""
    found = neuron(activations, normalizes_by_prompt_maximum=True)
    assert found.normalized_activations is not None
    assert [str(one) for one in found.normalized_activations.tolist()] == ["0.0"] * len(PROMPT)


def test_a_given_maximum_or_none() -> None:
    found = neuron((0.5, -3.0, 2.0, 1.0), normalizing_value=4.0)
    assert found.normalized_activations is not None
    np.testing.assert_allclose(found.normalized_activations, [0.125, 0, 0.5, 0.25])
    assert neuron((0.5, -3.0, 2.0, 1.0)).normalized_activations is None


def test_token_pairs_that_are_never_above_zero() -> None:
    """A head whose direct effects are all against the target."""
    for head in range(4):
        spec = DerivedAttentionScalarsSpec(
            DerivedScalar.UNFLATTENED_ATTN_WRITE_TO_FINAL_RESIDUAL_GRAD, 1, head
        )
        run = InferenceSpec(PROMPT[:1], LossConfig(LossName.LOGIT_DIFF, (1,), (2,)))
        result = answer(small_model("gpt2").engine(), run, pairs=spec).results["pairs"]
        assert isinstance(result, DerivedAttentionScalarsResult)
        expected = 1.0 if result.scalars[0, 0] > 0 else 0.0
        assert str(result.normalized_scalars[0, 0]) == str(expected)


def test_a_negative_maximum_turns_no_signs() -> None:
    found = normalized_by(np.array([-1.0, -2.0]), -1.0)
    assert [str(one) for one in found.tolist()] == ["0.0", "0.0"]


def test_over_a_maximum_close_to_zero_numbers_are_infinite() -> None:
    assert normalized_by(np.array([1.0, -1.0], np.float32), 1e-300).tolist() == [np.inf, 0.0]


def test_numbers_keep_their_type() -> None:
    assert normalized_by(np.ones(2, np.float32), 3.0).dtype == np.float32

"""Edges against a second implementation, and what must hold of them by themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tdb_server.domain.edges import EdgeReaderType, EdgesResult, EdgesSpec, EdgeWriterType
from tdb_server.domain.requests import InferenceSpec, InferenceSubRequest, LossConfig, LossName
from tdb_server.engine import edges as engine_edges

from tests.property.plain_edges import plain_edges
from tests.property.requests import answer, answers_of_calls, inference
from tests.property.small_models import MODELS, small_model

PROMPT, BASELINES = (3, 14, 15, 9, 26, 5), ((3, 41, 15, 9, 26, 5), (7, 8, 15, 9, 50, 5))
LOSS = LossConfig(LossName.LOGIT_DIFF, (11, 12), (30,))
ALL = EdgesSpec(top_k=10, whole_matrix=True)


def run(baselines: tuple[tuple[int, ...], ...] = BASELINES[:1], prompt: tuple[int, ...] = PROMPT) -> InferenceSpec:
    return replace(inference(prompt, LOSS), baselines=baselines)


def edges_of(name: str, spec: EdgesSpec, of: InferenceSpec | None = None, dtype: torch.dtype = torch.float64) -> EdgesResult:
    found = answer(small_model(name, dtype).engine(), of or run(), edges=spec).results["edges"]
    assert isinstance(found, EdgesResult)
    return found


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_a_second_implementation(name: str, n_steps: int) -> None:
    baselines = BASELINES[:n_steps]
    found = edges_of(name, replace(ALL, n_steps=n_steps), run(baselines)).scores
    expected = plain_edges(small_model(name).reference, PROMPT, baselines, LOSS, n_steps).numpy()
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())

"""Edges against a second implementation and transformer-lens, and what must hold of them by themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tdb_server.domain.debug import HOLD_FINAL_NORM_SCALE
from tdb_server.domain.edges import EdgesResult, EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.requests import (
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ResidualDirection,
)
from tdb_server.engine import edges as engine_edges
from tdb_server.engine.engine import Engine
from tdb_server.model.weights import load_decoder

from tests.property.plain_edges import plain_edges
from tests.property.requests import answer, answers_of_calls, inference
from tests.property.small_models import MAIN_MODELS, MODELS, small_model
from tests.random_models import FIXTURES

PROMPT, BASELINES = (3, 14, 15, 9, 26, 5), ((3, 14, 15, 41, 26, 5), (7, 8, 15, 9, 50, 5))
LOSS = LossConfig(LossName.LOGIT_DIFF, (11, 12), (30,))
ALL = EdgesSpec(top_k=10, whole_matrix=True)
KINDS = {
    "embed": "embedding",
    "attn_head_out": "head",
    "mlp_out": "mlp",
    "q_input": "head_query",
    "k_input": "head_key",
    "v_input": "head_value",
    "mlp_in": "mlp",
    "logits": "logits",
}
"""What transformer-lens calls them, and what they are here."""


def run(
    baselines: tuple[tuple[int, ...], ...] = BASELINES[:1], prompt: tuple[int, ...] = PROMPT
) -> InferenceSpec:
    return replace(inference(prompt, LOSS), baselines=baselines)


def edges_of(engine: Engine, spec: EdgesSpec, of: InferenceSpec | None = None) -> EdgesResult:
    found = answer(engine, of or run(), edges=spec).results["edges"]
    assert isinstance(found, EdgesResult)
    return found


@pytest.mark.parametrize(
    ("name", "n_steps"), [*((name, 1) for name in MODELS), *((name, 3) for name in (*MAIN_MODELS, "olmo2"))]
)
def test_scores_are_those_of_a_second_implementation(name: str, n_steps: int) -> None:
    baselines = BASELINES[: min(n_steps, 2)]
    found = edges_of(small_model(name).engine(), replace(ALL, n_steps=n_steps), run(baselines)).scores
    expected = plain_edges(small_model(name).reference, PROMPT, baselines, LOSS, n_steps).numpy()
    assert np.count_nonzero(expected) > expected.size / 4
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", MAIN_MODELS)
def test_edges_along_a_direction(name: str, layer: int) -> None:
    """Behind the last layer the direction stands where logits do; nobody reads them before."""
    vector = tuple(0.1 * i - 0.7 for i in range(16))
    loss = LossConfig(
        LossName.DIRECTION, direction=ResidualDirection(HookPoint.RESID_POST_MLP, layer, vector)
    )
    spec = replace(ALL, n_steps=2)
    found = edges_of(small_model(name).engine(), spec, replace(run(BASELINES), loss=loss)).scores
    expected = plain_edges(small_model(name).reference, PROMPT, BASELINES, loss, 2).numpy()
    assert bool(expected[:, -1].any()) == (layer == 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_scores_are_those_of_transformer_lens() -> None:
    told: dict[str, Any] = json.loads((FIXTURES / "transformer_lens" / "edges.json").read_text())
    asked = told["asked"]
    of = InferenceSpec(
        tuple(asked["prompt"]),
        LossConfig(LossName.LOGIT_DIFF, (asked["target"],), (asked["distractor"],)),
        ablations=(HOLD_FINAL_NORM_SCALE,),
        baselines=(tuple(asked["baseline"]),),
    )
    found = edges_of(Engine(load_decoder(FIXTURES / "tiny-a", "cpu", torch.float32), ()), ALL, of)
    assert found.scores is not None
    own = {
        (w.type.value, w.layer_index, w.head_index, r.type.value, r.layer_index, r.head_index): score
        for w, scores in zip(found.writers, found.scores.tolist(), strict=True)
        for r, score in zip(found.readers, scores, strict=True)
    }
    theirs = {
        (KINDS[writer], layer, head, KINDS[reader], to_layer, to_head): -score
        for writer, layer, head, reader, to_layer, to_head, score in told["edges"]
    }
    largest = max(map(abs, theirs.values()))
    for edge, score in theirs.items():
        assert own.pop(edge) == pytest.approx(score, rel=1e-4, abs=1e-5 * largest), edge
    assert set(own.values()) == {0.0}  # of a writer that does not come first


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_a_batch_gives_what_each_call_gives_alone(name: str) -> None:
    engine = small_model(name).engine()
    steps = replace(ALL, n_steps=3)
    other = run(((8, 8, 8, 1),), (5, 6, 7, 1))  # shorter: it is padded
    wanted = [(run(), steps), (other, ALL), (run(BASELINES), ALL), (other, steps)]
    together = answers_of_calls(
        engine,
        [[InferenceSubRequest(of, {"edges": spec})] for of, spec in wanted] + [[InferenceSubRequest(run())]],
    )
    for (of, spec), (one,) in zip(wanted, together[:-1], strict=True):
        alone, found = edges_of(engine, spec, of), one.results["edges"]
        assert isinstance(found, EdgesResult)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-9, atol=1e-12)
        assert one.loss == pytest.approx(answer(engine, replace(of, baselines=())).loss)


def test_blocks_of_tokens_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = small_model("llama").engine()
    whole = edges_of(engine, ALL)
    monkeypatch.setattr(
        engine_edges, "EDGE_WRITES", 2 * len(whole.writers) * small_model("llama").config.d_model
    )
    np.testing.assert_allclose(edges_of(engine, ALL).scores, whole.scores, rtol=1e-12, atol=1e-15)


def test_the_largest_are_listed_and_zeros_are_not() -> None:
    engine = small_model("llama").engine()
    every = edges_of(engine, replace(ALL, top_k=10_000))
    assert every.scores is not None
    sizes = np.abs(every.edge_scores)
    assert len(sizes) == np.count_nonzero(every.scores) < every.scores.size
    assert (np.diff(sizes) <= 0).all()
    np.testing.assert_array_equal(every.scores[every.edge_writers, every.edge_readers], every.edge_scores)
    few = edges_of(engine, EdgesSpec(top_k=7))
    assert few.scores is None
    np.testing.assert_array_equal(few.edge_scores, every.edge_scores[:7])
    assert len(edges_of(engine, ALL, run((PROMPT,))).edge_scores) == 0


def test_half_precision_is_close() -> None:
    exact = edges_of(small_model("llama").engine(), replace(ALL, n_steps=2)).scores
    rough = edges_of(small_model("llama", torch.bfloat16).engine(), replace(ALL, n_steps=2)).scores
    assert exact is not None
    assert rough is not None
    assert rough.dtype == np.float32
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.99

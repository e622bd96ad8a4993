"""Baselines, values, circuits, rules, edges, the lens, raw places, top examples: a GPU's answers are a CPU's.

On a small random model of every family, in float64, but for rotary angles: those are float32 everywhere, and
each device has its own cosine of them.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.edges import EdgesSpec
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import (
    ActivationsSpec,
    AttentionComponent,
    BackwardRule,
    Circuit,
    CircuitNode,
    DebugSubRequest,
    InferenceSubRequest,
    LensSpec,
    LossConfig,
    LossName,
    MlpComponent,
    NodeAblation,
    ValueType,
)
from tdb_server.domain.results import MultipleTopKResult
from tdb_server.engine.example_collector import ExampleCollector
from tdb_server.examples.kinds import Amounts, kinds_of
from tdb_server.workers.engine_loading import model_info

from tests.property.requests import answers_of_calls, inference, of_every_node
from tests.property.small_models import MODELS, VOCABULARY_SIZE, small_model

TOLERANCE = 1e-5
PROMPT, BASELINE, OTHER = (3, 14, 15, 9, 26, 5), (3, 14, 15, 41, 26, 5), (7, 8, 15, 9, 50, 5)
HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (5, 2, 1))
WHOLE_HEAD = NodeIndex(NodeType.WHOLE_HEAD, 1, (4, 1))
NEURON = NodeIndex(NodeType.MLP_NEURON, 1, (4, 7))
LOSS = LossConfig(LossName.LOGIT_DIFF, (11, 12), (30,))
WHOLE = frozenset({NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP})


def _debug(**changes: Any) -> InferenceSubRequest:
    asked = DebugSubRequest(
        PROMPT, (11,), (30,), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 5,
        baselines=(BASELINE,), omits_token_lists=True, wants_component_totals=True,
    )  # fmt: skip
    return of_every_node(inference_sub_request(replace(asked, **changes)))


def _calls() -> list[list[InferenceSubRequest]]:
    """Each call has one rule: gradients of one batch may go back by several."""
    values = (
        NodeAblation(HEAD, value_type=ValueType.BASELINE),
        NodeAblation(NEURON, 0.5, value_type=ValueType.SCALE),
    )
    whole = {"mlp_component": MlpComponent.WHOLE_MLP, "attention_component": AttentionComponent.WHOLE_HEAD}
    kept = (CircuitNode(NodeType.WHOLE_HEAD, 1, None, 1), CircuitNode(NodeType.WHOLE_MLP, 0, 5, 0))
    compared = replace(inference(PROMPT, LOSS), baselines=(BASELINE, OTHER))
    return [
        [_debug()],
        [_debug(baselines=(BASELINE, OTHER), node_ablations=values), _debug()],
        *([_debug(backward_rule=rule)] for rule in BackwardRule),
        [_debug(**whole, node_ablations=(NodeAblation(WHOLE_HEAD, value_type=ValueType.BASELINE),))],
        [_debug(circuit=Circuit(WHOLE, kept[:n])) for n in (0, 1, 2)],
        [InferenceSubRequest(replace(compared, circuit=Circuit(WHOLE, kept[:n]))) for n in (0, 1, 2)],
        [_told_by_the_divergence(_debug(baselines=(BASELINE, OTHER)))],
        [InferenceSubRequest(compared, {"edges": EdgesSpec(10, n_steps=3, whole_matrix=True)})],
        [
            InferenceSubRequest(
                inference(PROMPT, LOSS),
                {
                    "lens": LensSpec(HookPoint.RESID_POST_MLP, (0, 1), (4, 5), (11, 30), 3),
                    "mlp": ActivationsSpec(HookPoint.MLP_POST_ACT, (0, 1), (1, 5)),
                    "gradient": ActivationsSpec(HookPoint.RESID_POST_MLP, (0,), (5,), PassType.BACKWARD),
                },
            )
        ],
    ]


def _told_by_the_divergence(asked: InferenceSubRequest) -> InferenceSubRequest:
    return replace(asked, inference=replace(asked.inference, loss=LossConfig(LossName.KL_FROM_BASELINE)))


@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_and_a_cpu(name: str, device: str) -> None:
    calls = _calls()
    on_gpu, on_cpu = (
        answers_of_calls(small_model(name, device=where).engine(), calls) for where in (device, "cpu")
    )
    n_compared = _assert_close(on_gpu, on_cpu, name)
    assert n_compared > 100


@pytest.mark.parametrize("name", MODELS)
def test_in_a_batch_and_alone(name: str, device: str) -> None:
    running = small_model(name, device=device).engine()
    calls = _calls()
    alone = [answers_of_calls(running, [call])[0] for call in calls]
    assert _assert_close(answers_of_calls(running, calls), alone, name) > 100


@pytest.mark.parametrize("name", MODELS)
def test_top_examples(name: str, device: str) -> None:
    generator = np.random.default_rng(0)
    pieces = [tuple(generator.integers(0, VOCABULARY_SIZE, 6).tolist()) for _ in range(12)]

    def kept(where: str) -> list[np.ndarray]:
        running = small_model(name, device=where).engine()
        kinds = kinds_of(model_info("small", "digest", "float64", running))
        collecting = ExampleCollector(running, kinds, Amounts(k=3, n_lowest=2, n_random=1, context=6))
        for start in range(0, len(pieces), 4):
            collecting.run(pieces[start : start + 4], range(start, start + 4))
        return list(collecting.kept())

    assert _assert_close(kept(device), kept("cpu"), name) > 10


def _assert_close(one: Any, other: Any, path: str) -> int:
    """Compares all numbers of two answers, and returns how many arrays and numbers there were."""
    match one:
        case MultipleTopKResult():
            return _assert_close(_by_node(one), _by_node(other), path)
        case np.ndarray() if one.dtype.kind == "f":
            scale = float(np.nanmax(np.abs(np.where(np.isfinite(other), other, 0.0)), initial=0.1))
            np.testing.assert_allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=path)
        case np.ndarray():
            np.testing.assert_array_equal(one, other, err_msg=path)
        case float():
            assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE), path
        case dict():
            return sum(_assert_close(one.get(k, 0.0), other.get(k, 0.0), f"{path}.{k}") for k in one | other)
        case list() | tuple():
            pairs = zip(one, other, strict=True)
            return sum(_assert_close(*pair, f"{path}[{index}]") for index, pair in enumerate(pairs))
        case _ if is_dataclass(one):
            names = [field.name for field in fields(one)]
            return sum(_assert_close(getattr(one, n), getattr(other, n), f"{path}.{n}") for n in names)
        case _:
            assert one == other, path
            return 0
    return 1


def _by_node(result: MultipleTopKResult) -> dict[object, object]:
    """Numbers by group and node, and sums: how near ties are ordered says nothing, and nodes that one answer
    leaves out are next to nothing."""
    numbers: dict[object, object] = {}
    for group, found in result.groups.items():
        numbers[group] = dict(zip(result.nodes, found.activations.tolist(), strict=True))
        numbers[group, "sums"] = found.sums
    return numbers

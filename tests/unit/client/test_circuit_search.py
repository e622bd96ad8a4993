"""The search for a circuit, asked about made-up models whose best circuits are known."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tdb_client import Circuit, CircuitNode
from tdb_client.circuit_search import CircuitQuestion, find_circuit
from tdb_client.inference import InferenceSubRequest
from tdb_client.results import CircuitValues, ComponentTotalsResult, LabelledArray

N_LAYERS, N_HEADS, N_PER_CALL = 3, 3, 8
NODES = [
    node
    for layer in range(N_LAYERS)
    for node in (
        *(CircuitNode("whole_head", layer, head) for head in range(N_HEADS)),
        CircuitNode("whole_mlp", layer),
    )
]


class MadeUpModel:
    """Components that add to the objective, and pairs of them that do more or less together."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        singles = random.exponential(1.0, len(NODES))
        pairs = np.triu(random.normal(0, 1.0, (len(NODES), len(NODES))), 1)
        whole = singles.sum() + pairs.sum()
        self.singles, self.pairs = singles / whole, pairs / whole
        self.n_calls, self.most_in_a_call = 0, 0

    def faithfulness(self, nodes: tuple[CircuitNode, ...]) -> float:
        kept = np.array([node in nodes for node in NODES], float)
        return float(kept @ self.singles + kept @ self.pairs @ kept)

    def answer(self, asked: InferenceSubRequest) -> Any:
        call = SimpleNamespace(model_name="made up", model_digest="0")
        if asked.only_these is None:
            totals: dict[str, npt.NDArray[np.float64]] = {
                "whole_head_act_times_grad": np.zeros((N_LAYERS, N_HEADS)),
                "whole_mlp_act_times_grad": np.zeros(N_LAYERS),
            }
            for node, single in zip(NODES, self.singles, strict=True):
                place = (node.layer, node.index) if node.type == "whole_head" else node.layer
                totals[f"{node.type}_act_times_grad"][place] = single
            arrays = {name: LabelledArray(one, ()) for name, one in totals.items()}
            return SimpleNamespace(call=call, results={"totals": ComponentTotalsResult(arrays)})
        kept = self.faithfulness(asked.only_these)
        return SimpleNamespace(call=call, circuit=CircuitValues(kept, 1.0, 0.0, kept))

    def search(self, faithfulness: float = 0.85, max_calls: int = 64) -> Circuit:
        limits = SimpleNamespace(max_sub_requests=N_PER_CALL)
        model: Any = SimpleNamespace(n_layers=N_LAYERS, n_heads=N_HEADS, limits=limits)
        question = CircuitQuestion("p", (" a",), (" b",), faithfulness=faithfulness, max_calls=max_calls)
        search = find_circuit(question, model, N_PER_CALL)
        asked = next(search)
        while True:
            try:
                asked = search.send([self.answer(one) for one in asked])
            except StopIteration as done:
                found: Circuit = done.value
                return found
            self.n_calls += 1
            self.most_in_a_call = max(self.most_in_a_call, len(asked))


@pytest.mark.parametrize("seed", [2, 3, 6, 9])
def test_it_finds_the_smallest_there_is(seed: int) -> None:
    """Of these four, pruning alone does not."""
    model = MadeUpModel(seed)
    found = model.search(max_calls=200)
    sizes = range(1, len(NODES) + 1)
    smallest = next(
        size for size in sizes if any(model.faithfulness(one) >= 0.85 for one in combinations(NODES, size))
    )
    assert len(found) == smallest
    assert found.is_faithful
    assert found.n_measured < 2 ** len(NODES) / 4
    for one in found.path:
        assert one.faithfulness == model.faithfulness(one.nodes)
        assert len(set(one.nodes)) == len(one)


@pytest.mark.parametrize("max_calls", [1, 3, 10])
def test_it_keeps_within_its_calls(max_calls: int) -> None:
    model = MadeUpModel(1)
    found = model.search(max_calls=max_calls)
    assert model.n_calls <= max_calls
    assert model.most_in_a_call <= N_PER_CALL
    assert found.n_measured <= max_calls * N_PER_CALL


def test_more_calls_never_find_less() -> None:
    sizes = [len(MadeUpModel(2).search(max_calls=n_calls)) for n_calls in (2, 6, 12, 40)]
    assert sizes == sorted(sizes, reverse=True)

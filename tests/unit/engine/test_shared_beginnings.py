"""Which rows are run in which layer: those that begin alike only once, until something differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from tdb_server.domain.call import Call
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    Circuit,
    CircuitNode,
    InferenceSpec,
    InferenceSubRequest,
    LossConfig,
    LossName,
    ValueType,
)
from tdb_server.engine.plan import plan_batch
from tdb_server.engine.shared_beginnings import Beginnings, shared_beginnings

LOSS = LossConfig(LossName.LOGIT_DIFF, (1,), (2,))
PLAIN = InferenceSpec((1, 2), LOSS)
N_LAYERS = 3
MLP, HEAD = NodeType.WHOLE_MLP, NodeType.WHOLE_HEAD


def beginnings(*runs: InferenceSpec) -> Beginnings | None:
    call = Call("", tuple(InferenceSubRequest(one) for one in runs))
    plan = plan_batch([call], (), n_layers=N_LAYERS)
    assert [row.inference for row in plan.rows] == list(runs)
    return shared_beginnings(plan, torch.device("cpu"))


def rows_run(*runs: InferenceSpec) -> list[list[int]]:
    """By layer, and behind all layers."""
    found = beginnings(*runs)
    assert found is not None
    return [one.tolist() for one in found.running]


def set_at(hook_point: HookPoint, layer_index: int | None, value: float = 0.5) -> InferenceSpec:
    index = ActivationIndex(hook_point, layer_index, (0, 0))
    return replace(PLAIN, ablations=(AblationSpec(index, value),))


def circuit(*nodes: tuple[NodeType, int, int], token: int | None = None) -> InferenceSpec:
    """Nodes by their type, layer and component are kept."""
    kept = tuple(CircuitNode(kind, layer, token, component) for kind, layer, component in nodes)
    return replace(PLAIN, circuit=Circuit(frozenset({MLP, HEAD}), kept))


def without_each(*nodes: tuple[NodeType, int, int]) -> Sequence[InferenceSpec]:
    return [circuit(*(one for one in nodes if one != left_out)) for left_out in nodes]


def test_rows_are_run_from_the_layer_on_in_which_they_are_altered() -> None:
    runs = [set_at(HookPoint.MLP_POST_ACT, layer) for layer in (2, 0)]
    runs += [PLAIN, set_at(HookPoint.LOGITS, None), replace(PLAIN, token_ids=(7, 7))]
    found = beginnings(*runs)
    assert found is not None
    assert [places.tolist() for places in found.places] == [
        [0, 1, 0, 0, 2],
        [0, 1, 0, 0, 2],
        [0, 1, 2, 2, 3],
        [0, 1, 2, 3, 4],
    ]
    assert found.first.tolist() == [0, 1, 4]
    assert {layer: rows.tolist() for layer, rows in found.parting.items()} == {
        1: [0, 1, 0, 2],
        2: [0, 1, 2, 2, 3],
    }


def test_rows_in_which_the_same_is_set_are_run_once() -> None:
    first, second, other = (set_at(HookPoint.MLP_POST_ACT, 1, value) for value in (0.5, 0.5, 0.7))
    assert rows_run(first, second, other) == [[0], [0, 2], [0, 2], [0, 1, 2]]
    embedding = set_at(HookPoint.RESID_POST_EMB, None)
    assert rows_run(embedding, embedding) == [[0], [0], [0], [0, 1]]


def test_gradients_that_are_set_part_no_rows() -> None:
    index = ActivationIndex(HookPoint.MLP_POST_ACT, 0, (0, 0), PassType.BACKWARD)
    held_back = replace(PLAIN, ablations=(AblationSpec(index, 0.0),))
    assert rows_run(PLAIN, held_back) == [[0], [0], [0], [0, 1]]


def test_rows_that_differ_from_the_beginning_share_nothing() -> None:
    assert beginnings(PLAIN, replace(PLAIN, token_ids=(2, 1))) is None
    embeddings = [set_at(HookPoint.RESID_POST_EMB, None, value) for value in (0.5, 0.7)]
    assert beginnings(*embeddings) is None


def test_circuits_part_in_the_first_layer_of_which_they_do_not_keep_the_same() -> None:
    nodes = [(MLP, 0, 0), (HEAD, 1, 3), (MLP, 2, 0), (HEAD, 2, 1)]
    assert rows_run(circuit(*nodes), *without_each(*nodes)) == [
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]


def test_rows_that_have_parted_stay_apart() -> None:
    """However alike later layers are: what they are given differs."""
    runs = [circuit((MLP, 0, 0), (HEAD, 2, 1)), circuit((HEAD, 2, 1))]
    assert beginnings(*runs) is None


def test_the_order_of_kept_nodes_does_not_count() -> None:
    nodes = [(HEAD, 0, 1), (HEAD, 0, 0), (MLP, 1, 0)]
    assert rows_run(circuit(*nodes), circuit(*reversed(nodes))) == [[0], [0], [0], [0, 1]]


def test_circuits_share_nothing_where_types_tokens_or_baselines_differ() -> None:
    nodes = [(HEAD, 0, 1)]
    own = circuit(*nodes)
    assert own.circuit is not None
    heads_alone = replace(own, circuit=replace(own.circuit, node_types=frozenset({HEAD})))
    compared = [replace(own, baselines=baselines) for baselines in (((3, 4),), ((3, 4), (5, 6)))]
    others = [circuit(*nodes, token=0), heads_alone]
    assert beginnings(own, *others) is None
    assert beginnings(*compared) is None


def test_an_ablation_beside_a_circuit_parts_it_from_others() -> None:
    own = circuit((MLP, 1, 0))
    index = ActivationIndex(HookPoint.ATTN_V_OUT, 1, (0, 0, None))
    scaled = replace(own, ablations=(AblationSpec(index, 2.0, ValueType.SCALE),))
    assert rows_run(own, scaled, scaled) == [[0], [0, 1], [0, 1], [0, 1, 2]]

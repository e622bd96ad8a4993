"""Every way in which baselines, values and circuits are refused, in both requests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import ValueType
from tdb_server.errors import OverLimit
from tdb_server.service.enum_names import NODE_TYPES
from tdb_server.service.message_survey import check_lists
from transformer_debugger.v1.ablation_pb2 import AblationSpec, NodeAblation
from transformer_debugger.v1.circuit_pb2 import Circuit, CircuitNode
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, InferRequest

from tests.chaos.hostile_messages import field
from tests.unit.service.infer_changes import (
    ALL,
    BACKWARD,
    HEAD,
    NEURON,
    at,
    traced,
    without_loss,
)
from tests.unit.service.tiny_requests import Change, debug, infer, model, names, node, parse, violations

NUMBER, BASELINE, SCALE, ADD = 1, 2, 3, 4
WHOLE_HEAD, WHOLE_MLP = (NODE_TYPES.numbers[one] for one in (NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP))
LATENT, MLP_LATENT = (
    NODE_TYPES.numbers[one] for one in (NodeType.AUTOENCODER_LATENT, NodeType.MLP_AUTOENCODER_LATENT)
)
OTHER_PROMPT = "The dog sat on the mat"
SPEC = "inference_spec.ablation_specs[0]"
Cases = list[tuple[list[Change], list[tuple[str, str]]]]


def compared(*prompts: str) -> Change:
    def change(message: Any) -> None:
        getattr(message, "inference_spec", message).baseline_prompts.extend(prompts)

    return change


def spec(index: Any, **fields: Any) -> Change:
    return lambda message: message.inference_spec.ablation_specs.append(AblationSpec(index=index, **fields))


def ablation(node_index: Any, **fields: Any) -> Change:
    return lambda message: message.node_ablations.append(NodeAblation(node_index=node_index, **fields))


def only(*node_types: int, nodes: tuple[CircuitNode, ...] = ()) -> Change:
    def change(message: Any) -> None:
        circuit = Circuit(node_types=node_types, nodes=nodes)  # type: ignore[arg-type]
        getattr(message, "inference_spec", message).only_these.CopyFrom(circuit)

    return change


def kept(
    node_type: int = WHOLE_HEAD, layer: int | None = 1, token: int | None = None, at: int = 0
) -> CircuitNode:
    return CircuitNode(node_type=node_type, layer_index=layer, token_index=token, component_index=at)  # type: ignore[arg-type]


OF_BOTH: Cases = [
    ([compared("The cat")], [("baseline_prompts[0]", "UNEQUAL_PROMPT_LENGTHS")]),
    (
        [compared(OTHER_PROMPT, "", "The cat")],
        [("baseline_prompts[1]", "EMPTY_PROMPT"), ("baseline_prompts[2]", "UNEQUAL_PROMPT_LENGTHS")],
    ),
    ([compared("a " * 4000)], [("baseline_prompts[0]", "PROMPT_TOO_LONG")]),
    ([only()], [("only_these.node_types", "FIELD_REQUIRED")]),
    ([only(0)], [("only_these.node_types[0]", "FIELD_REQUIRED")]),
    ([only(WHOLE_HEAD, 99)], [("only_these.node_types[1]", "UNKNOWN_ENUM_VALUE")]),
    ([only(HEAD)], [("only_these.node_types[0]", "NODE_NOT_ABLATABLE")]),
    ([only(*[WHOLE_HEAD] * 100)], [("only_these.node_types", "OUT_OF_RANGE")]),
    ([only(MLP_LATENT)], [("only_these.node_types[0]", "AUTOENCODER_NOT_LOADED")]),
    ([only(WHOLE_HEAD, nodes=(kept(WHOLE_MLP),))], [("only_these.nodes[0].node_type", "FIELD_NOT_ALLOWED")]),
    ([only(WHOLE_HEAD, nodes=(kept(0),))], [("only_these.nodes[0].node_type", "FIELD_REQUIRED")]),
    ([only(WHOLE_HEAD, nodes=(kept(layer=None),))], [("only_these.nodes[0].layer_index", "FIELD_REQUIRED")]),
    ([only(WHOLE_HEAD, nodes=(kept(layer=3),))], [("only_these.nodes[0].layer_index", "LAYER_OUT_OF_RANGE")]),
    (
        [only(WHOLE_HEAD, nodes=(kept(token=9, at=4), kept(token=-1, at=-1)))],
        [
            ("only_these.nodes[0].token_index", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("only_these.nodes[0].component_index", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("only_these.nodes[1].token_index", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("only_these.nodes[1].component_index", "TENSOR_INDEX_OUT_OF_RANGE"),
        ],
    ),
    (
        [only(WHOLE_MLP, nodes=(kept(WHOLE_MLP, at=1),))],
        [("only_these.nodes[0].component_index", "TENSOR_INDEX_OUT_OF_RANGE")],
    ),
]
OF_DEBUG: Cases = [
    (
        [ablation(node(NEURON, 1, 2, 5), value_type=BASELINE)],
        [("node_ablations[0].value_type", "BASELINE_REQUIRED")],
    ),
    (
        [compared(OTHER_PROMPT), ablation(node(NEURON, 1, 2, 5), value_type=BASELINE, value=1)],
        [("node_ablations[0].value", "FIELD_NOT_ALLOWED")],
    ),
    (
        [ablation(node(NEURON, 1, 2, 5), value_type=9)],
        [("node_ablations[0].value_type", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [ablation(node(NEURON, 1, 2, 5), value_type=SCALE, value=math.nan)],
        [("node_ablations[0].value", "NOT_FINITE")],
    ),
    (
        [ablation(node(WHOLE_MLP, 1, 2, 5), value_type=SCALE)],
        [("node_ablations[0].node_index.tensor_indices[1]", "TENSOR_INDEX_OUT_OF_RANGE")],
    ),
    (
        [ablation(node(WHOLE_HEAD, 1, 2, 1, 1))],
        [("node_ablations[0].node_index.tensor_indices", "WRONG_NUMBER_OF_INDICES")],
    ),
    (
        [ablation(node(WHOLE_HEAD, 1, 2, 1), attended_to_token_only=True)],
        [("node_ablations[0].attended_to_token_only", "FIELD_NOT_ALLOWED")],
    ),
    *(
        (
            [
                compared(OTHER_PROMPT),
                ablation(node(HEAD, 1, 4, 2, 0), attended_to_token_only=True, value_type=first),
                ablation(node(HEAD, 1, 4, 2, 0), attended_to_token_only=is_pair, value_type=second),
            ],
            [("node_ablations[1]", "DUPLICATE_ABLATION")],
        )
        for first, second, is_pair in [
            (BASELINE, NUMBER, True),
            (BASELINE, NUMBER, False),
            (NUMBER, BASELINE, False),
            (BASELINE, SCALE, False),
            (ADD, ADD, True),
        ]
    ),
    (
        [
            compared(OTHER_PROMPT),
            ablation(node(WHOLE_HEAD, 1, 4, 0)),
            ablation(node(HEAD, 1, 4, 2, 0), attended_to_token_only=True, value_type=BASELINE),
        ],
        [("node_ablations[1]", "DUPLICATE_ABLATION")],
    ),
    (
        [
            only(WHOLE_HEAD),
            lambda one: one.upstream_node_to_trace.node_index.CopyFrom(node(NEURON, 1, 2, 5)),
        ],
        [("only_these", "FIELD_NOT_ALLOWED")],
    ),
    (
        [lambda one: one.upstream_node_to_trace.node_index.CopyFrom(node(WHOLE_HEAD, 1, 2, 1))],
        [("upstream_node_to_trace.node_index.node_type", "NODE_NOT_TRACEABLE")],
    ),
]
NEURONS = at(HookPoint.MLP_POST_ACT, 0, 1, ALL)
OF_INFER: Cases = [
    ([spec(NEURONS, value_type=BASELINE)], [(f"{SPEC}.value_type", "BASELINE_REQUIRED")]),
    ([spec(NEURONS, value_type=7)], [(f"{SPEC}.value_type", "UNKNOWN_ENUM_VALUE")]),
    ([spec(NEURONS, attended_to_token=1)], [(f"{SPEC}.attended_to_token", "FIELD_NOT_ALLOWED")]),
    ([spec(NEURONS, direction=[1.0] * 192)], [(f"{SPEC}.direction", "FIELD_NOT_ALLOWED")]),
    ([spec(NEURONS, direction=[1.0] * 192, value_type=SCALE)], [(f"{SPEC}.direction", "FIELD_NOT_ALLOWED")]),
    (
        [spec(NEURONS, direction=[1.0] * 191, value_type=ADD)],
        [(f"{SPEC}.direction", "WRONG_NUMBER_OF_INDICES")],
    ),
    (
        [spec(NEURONS, direction=[math.inf] * 192, value_type=ADD)],
        [(f"{SPEC}.direction", "NOT_FINITE")],
    ),
    (
        [spec(at(HookPoint.MLP_POST_ACT, 0, ALL, 3), direction=[1.0], value_type=ADD)],
        [(f"{SPEC}.direction", "FIELD_NOT_ALLOWED")],
    ),
    (
        [spec(at(HookPoint.ATTN_QK_PROBS, 0, 1, 1, ALL), direction=[1.0] * 4, value_type=ADD)],
        [(f"{SPEC}.direction", "FIELD_NOT_ALLOWED")],
    ),
    *(
        (
            [
                compared(OTHER_PROMPT),
                spec(at(HookPoint.MLP_POST_ACT, 0, 1, ALL, pass_type=BACKWARD), value_type=one),
            ],
            [(f"{SPEC}.value_type", "FIELD_NOT_ALLOWED")],
        )
        for one in (BASELINE, SCALE, ADD)
    ),
    *(
        (
            [compared(OTHER_PROMPT), spec(at(HookPoint.LOGITS, None, ALL, 3), value_type=one)],
            [(f"{SPEC}.value_type", "FIELD_NOT_ALLOWED")],
        )
        for one in (BASELINE, SCALE, ADD)
    ),
    (
        [spec(NEURONS, value_type=SCALE, value=2), spec(NEURONS, value_type=SCALE, value=2)],
        [("inference_spec.ablation_specs[1]", "DUPLICATE_ABLATION")],
    ),
    ([without_loss, only(WHOLE_HEAD)], [("inference_spec.only_these", "OBJECTIVE_REQUIRED")]),
    (
        [without_loss, traced(node(NEURON, 1, 2, 5)), only(WHOLE_HEAD)],
        [("inference_spec.only_these", "OBJECTIVE_REQUIRED")],
    ),
    (
        [traced(node(HEAD, 1, 4, 2, 0), trace_type=4), only(WHOLE_HEAD)],
        [("inference_spec.only_these", "OBJECTIVE_REQUIRED")],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), OF_BOTH, ids=names(OF_BOTH))
def test_in_both_requests(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    for request, prefix in ((debug(*changes), ""), (infer(*changes), "inference_spec.")):
        assert violations(request) == [
            (f"sub_requests[0].{prefix}{place}", reason) for place, reason in expected
        ]


@pytest.mark.parametrize(("changes", "expected"), OF_DEBUG, ids=names(OF_DEBUG))
def test_in_debug_requests(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(debug(*changes)) == [(f"sub_requests[0].{place}", reason) for place, reason in expected]


@pytest.mark.parametrize(("changes", "expected"), OF_INFER, ids=names(OF_INFER))
def test_in_general_requests(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(infer(*changes)) == [(f"sub_requests[0].{place}", reason) for place, reason in expected]


def test_two_names_of_one_dictionary_are_refused() -> None:
    found = violations(infer(only(LATENT, MLP_LATENT)), model(Site.MLP_POST_ACT))
    assert found == [("sub_requests[0].inference_spec.only_these.node_types[1]", "FIELD_NOT_ALLOWED")]


def test_what_is_sound_is_read() -> None:
    pair = {"attended_to_token_only": True, "value_type": BASELINE}
    (found,) = parse(
        debug(
            compared(OTHER_PROMPT, "The cat sat on the dog"),
            ablation(node(HEAD, 1, 4, 2, 0), **pair),
            ablation(node(HEAD, 1, 4, 3, 0), **pair),
            ablation(node(HEAD, 1, 4, 3, 0), **pair),
            ablation(node(HEAD, 1, 4, 1, 0), attended_to_token_only=True, value_type=SCALE, value=2),
            ablation(node(WHOLE_MLP, 1, 4, 0), value_type=ADD, value=0.5),
            only(WHOLE_HEAD, nodes=(kept(token=3, at=2), kept())),
        )
    )
    run = found.inference
    assert [len(one) for one in run.baselines] == [len(run.token_ids)] * 2
    assert [one.value_type for one in run.ablations[:5]] == [
        *[ValueType.BASELINE] * 3,
        ValueType.SCALE,
        ValueType.ADD,
    ]
    assert [one.attended_to_token for one in run.ablations[:5]] == [2, 3, 3, None, None]
    assert run.ablations[0].index.hook_point is HookPoint.ATTN_V_OUT
    assert run.circuit is not None
    assert [(one.token_index, one.component_index) for one in run.circuit.nodes] == [(3, 2), (None, 0)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (compared(*[OTHER_PROMPT] * 3), "TOO_MANY_BASELINES"),
        (only(WHOLE_HEAD, nodes=(kept(),) * 3), "TOO_MANY_NODES"),
    ],
)
def test_more_than_the_limits(change: Change, reason: str) -> None:
    limits = replace(Limits(), max_sub_requests=2, max_circuit_nodes=2)
    for request in (debug(change), infer(change)):
        with pytest.raises(OverLimit) as caught:
            parse(request, limits=limits)
        assert caught.value.reason == reason


@pytest.mark.parametrize("request_type", [DebugRequest, InferRequest])
def test_their_lists_are_counted_before_they_are_unpacked(request_type: Any) -> None:
    sub_request = request_type.DESCRIPTOR.fields_by_name["sub_requests"].message_type
    run = sub_request.fields_by_name.get("inference_spec")
    of_run = (sub_request if run is None else run.message_type).fields_by_name

    def message(one: bytes) -> bytes:
        return field(1, one if run is None else field(run.number, one))

    limits = Limits()
    baseline, circuit = field(of_run["baseline_prompts"].number, b"a"), of_run["only_these"]
    kept_node = field(circuit.message_type.fields_by_name["nodes"].number, b"")
    for one, limit, reason in (
        (lambda n: baseline * n, limits.max_sub_requests, "TOO_MANY_BASELINES"),
        (lambda n: field(circuit.number, kept_node * n), limits.max_circuit_nodes, "TOO_MANY_NODES"),
    ):
        check_lists(message(one(limit)), request_type.DESCRIPTOR, limits)
        with pytest.raises(OverLimit) as caught:
            check_lists(message(one(limit + 1)), request_type.DESCRIPTOR, limits)
        assert caught.value.reason == reason

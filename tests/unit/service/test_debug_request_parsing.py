"""What a debug request stands for, and every way in which one is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar, GroupId
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.domain.requests import (
    AttentionComponent,
    AttentionTraceType,
    DebugSubRequest,
    MlpComponent,
    Trace,
)
from tdb_server.errors import FailedPrecondition, OverLimit
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugSubRequest as Message

from tests.unit.service.tiny_requests import (
    LIMITS,
    N_TOKENS,
    PROMPT,
    TOKENIZER,
    Change,
    debug,
    model,
    names,
    node,
    parse,
    violations,
)

HEAD, NEURON, LATENT, MLP_LATENT, ATTENTION_LATENT = 1, 4, 5, 6, 7
Q, K, QK, V = 1, 2, 3, 4


def traced(
    node_type: int = HEAD, layer: int | None = 1, *indices: int, trace_type: int = 0, pass_type: int = 0
) -> Change:
    def change(message: Message) -> None:
        trace = message.upstream_node_to_trace
        trace.node_index.CopyFrom(node(node_type, layer, *indices, pass_type=pass_type))
        trace.attention_trace_type = trace_type

    return change


def towards(node_type: int, layer: int | None, *indices: int, trace_type: int = 0) -> Change:
    def change(message: Message) -> None:
        trace = message.downstream_node_to_trace
        trace.node_index.CopyFrom(node(node_type, layer, *indices))
        trace.attention_trace_type = trace_type

    return change


def ablated(
    node_type: int,
    layer: int | None,
    *indices: int,
    value: float = 0.0,
    pass_type: int = 0,
    pair_only: bool = False,
) -> Change:
    def change(message: Message) -> None:
        message.node_ablations.add(
            node_index=node(node_type, layer, *indices, pass_type=pass_type),
            value=value,
            attended_to_token_only=pair_only,
        )

    return change


V_TRACE = traced(HEAD, 1, 4, 2, 0, trace_type=V)


def test_a_plain_request() -> None:
    (found,) = parse(debug())
    the, of = TOKENIZER.encode(" the"), TOKENIZER.encode(" of")
    expected = DebugSubRequest(
        tuple(TOKENIZER.encode(PROMPT)),
        tuple(the),
        tuple(of),
        MlpComponent.NEURON,
        AttentionComponent.ATTENTION_HEAD,
        5,
    )
    assert len(expected.token_ids) == N_TOKENS
    assert found == inference_sub_request(expected)


def test_ablations_and_traces() -> None:
    request = debug(ablated(NEURON, 0, 3, 7, value=1.5), V_TRACE, towards(NEURON, 1, 4, 9))
    (found,) = parse(request)
    (neuron,) = found.inference.ablations[:-1]
    assert (neuron.index.layer_index, neuron.index.tensor_indices, neuron.value) == (0, (3, 7), 1.5)
    assert found.inference.trace == Trace(
        NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 0)),
        AttentionTraceType.V,
        downstream=Trace(NodeIndex(NodeType.MLP_NEURON, 1, (4, 9))),
    )
    assert found.inference.loss is None


@pytest.mark.parametrize(("pair_only", "attended_to"), [(False, None), (True, 1)])
def test_a_head_is_ablated_at_all_it_attends_to_unless_the_pair_is_meant(
    pair_only: bool, attended_to: int | None
) -> None:
    (found,) = parse(debug(ablated(HEAD, 0, 5, 1, 2, value=0.5, pair_only=pair_only)))
    (cells,) = found.inference.ablations[:-1]
    assert (cells.index.hook_point, cells.index.tensor_indices, cells.value) == (
        HookPoint.ATTN_QK_PROBS,
        (5, attended_to, 2),
        0.5,
    )


def test_k_may_be_left_out() -> None:
    def k(limits: Limits) -> int:
        (found,) = parse(debug(lambda one: one.ClearField("top_and_bottom_k")), limits=limits)
        return found.processing["topKComponents"].top_and_bottom_k

    assert k(LIMITS) == 10
    assert k(replace(LIMITS, max_top_and_bottom_k=4)) == 4


def test_a_generic_latent_keeps_its_name() -> None:
    info = model(Site.RESID_DELTA_ATTN)
    (found,) = parse(debug(traced(LATENT, 2, 1, 69)), info)
    assert found.inference.trace.node.node_type is NodeType.AUTOENCODER_LATENT


def test_a_trace_that_needs_no_loss_needs_no_targets() -> None:
    (found,) = parse(debug(traced(NEURON, 1, 4, 2), lambda one: one.ClearField("target_tokens")))
    assert found.inference.loss is None


REFUSALS: list[tuple[list[Change], list[tuple[str, str]]]] = [
    ([lambda one: setattr(one, "prompt", "")], [("prompt", "EMPTY_PROMPT")]),
    ([lambda one: setattr(one, "prompt", "a " * 100)], [("prompt", "PROMPT_TOO_LONG")]),
    ([lambda one: one.ClearField("target_tokens")], [("target_tokens", "FIELD_REQUIRED")]),
    ([lambda one: one.target_tokens.append("")], [("target_tokens[1]", "NOT_ONE_TOKEN")]),
    ([lambda one: one.distractor_tokens.append(" thethe")], [("distractor_tokens[1]", "NOT_ONE_TOKEN")]),
    (
        [lambda one: setattr(one, "component_type_for_mlp", 9)],
        [("component_type_for_mlp", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [lambda one: setattr(one, "component_type_for_attention", -1)],
        [("component_type_for_attention", "UNKNOWN_ENUM_VALUE")],
    ),
    ([lambda one: setattr(one, "top_and_bottom_k", -2)], [("top_and_bottom_k", "OUT_OF_RANGE")]),
    ([lambda one: one.node_ablations.add()], [("node_ablations[0].node_index", "FIELD_REQUIRED")]),
    ([ablated(0, 0, 1, 1)], [("node_ablations[0].node_index.node_type", "FIELD_REQUIRED")]),
    ([ablated(77, 0, 1, 1)], [("node_ablations[0].node_index.node_type", "UNKNOWN_ENUM_VALUE")]),
    ([ablated(9, 0, 1, 0)], [("node_ablations[0].node_index.node_type", "NODE_NOT_ABLATABLE")]),
    ([ablated(NEURON, None, 1, 1)], [("node_ablations[0].node_index.layer_index", "FIELD_REQUIRED")]),
    ([ablated(NEURON, 3, 1, 1)], [("node_ablations[0].node_index.layer_index", "LAYER_OUT_OF_RANGE")]),
    ([ablated(NEURON, -1, 1, 1)], [("node_ablations[0].node_index.layer_index", "LAYER_OUT_OF_RANGE")]),
    (
        [ablated(NEURON, 0, 1, 1, pass_type=2)],
        [("node_ablations[0].node_index.pass_type", "FIELD_NOT_ALLOWED")],
    ),
    (
        [ablated(NEURON, 0, 1, 1, pass_type=5)],
        [("node_ablations[0].node_index.pass_type", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [ablated(NEURON, 0, 1)],
        [("node_ablations[0].node_index.tensor_indices", "WRONG_NUMBER_OF_INDICES")],
    ),
    (
        [ablated(HEAD, 0, 9, 2, 4)],
        [
            ("node_ablations[0].node_index.tensor_indices[0]", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("node_ablations[0].node_index.tensor_indices[2]", "TENSOR_INDEX_OUT_OF_RANGE"),
        ],
    ),
    (
        [ablated(HEAD, 0, 2, 3, 0)],
        [("node_ablations[0].node_index.tensor_indices", "MASKED_ATTENTION_CELL")],
    ),
    ([ablated(NEURON, 0, 1, 1, value=math.nan)], [("node_ablations[0].value", "NOT_FINITE")]),
    ([ablated(NEURON, 0, 1, 1, value=-math.inf)], [("node_ablations[0].value", "NOT_FINITE")]),
    (
        [ablated(HEAD, 0, 5, 1, 2), ablated(HEAD, 0, 5, 3, 2, value=1.0)],
        [("node_ablations[1]", "DUPLICATE_ABLATION")],
    ),
    (
        [ablated(HEAD, 0, 5, 1, 2, pair_only=True), ablated(HEAD, 0, 5, 3, 2, value=1.0)],
        [("node_ablations[1]", "DUPLICATE_ABLATION")],
    ),
    (
        [ablated(NEURON, 0, 1, 1, pair_only=True)],
        [("node_ablations[0].attended_to_token_only", "FIELD_NOT_ALLOWED")],
    ),
    (
        [lambda one: setattr(one, "top_and_bottom_k", 0)],
        [("top_and_bottom_k", "OUT_OF_RANGE")],
    ),
    (
        [traced(NEURON, 1, 2, 5, trace_type=QK)],
        [("upstream_node_to_trace.attention_trace_type", "ATTENTION_TRACE_TYPE_NOT_ALLOWED")],
    ),
    (
        [traced(HEAD, 1, 3, 2, 1, trace_type=9)],
        [("upstream_node_to_trace.attention_trace_type", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [traced(10, None, 2, 5)],
        [("upstream_node_to_trace.node_index.node_type", "NODE_NOT_TRACEABLE")],
    ),
    (
        [lambda one: one.upstream_node_to_trace.SetInParent()],
        [("upstream_node_to_trace.node_index", "FIELD_REQUIRED")],
    ),
    (
        [traced(NEURON, 1, 2, 5, pass_type=2)],
        [("upstream_node_to_trace.node_index.pass_type", "FIELD_NOT_ALLOWED")],
    ),
    (
        [V_TRACE, towards(HEAD, 2, 4, 1, 0, trace_type=V)],
        [("downstream_node_to_trace.attention_trace_type", "DOWNSTREAM_IS_V")],
    ),
    (
        [V_TRACE, towards(HEAD, 2, 4, 1, 0)],
        [("downstream_node_to_trace.attention_trace_type", "ATTENTION_TRACE_TYPE_REQUIRED")],
    ),
    (
        [V_TRACE, towards(HEAD, 1, 4, 1, 0, trace_type=Q)],
        [("downstream_node_to_trace.node_index.layer_index", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [V_TRACE, towards(NEURON, 0, 3, 1)],
        [
            ("downstream_node_to_trace.node_index.layer_index", "DOWNSTREAM_NOT_AFTER_UPSTREAM"),
            ("downstream_node_to_trace.node_index.tensor_indices", "DOWNSTREAM_NOT_AFTER_UPSTREAM"),
        ],
    ),
    (
        [V_TRACE, towards(NEURON, 1, 3, 1)],
        [("downstream_node_to_trace.node_index.tensor_indices", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [V_TRACE, towards(HEAD, 2, 6, 4, 1, trace_type=Q)],
        [("downstream_node_to_trace.node_index.tensor_indices", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [V_TRACE, towards(HEAD, 2, 4, 3, 1, trace_type=K)],
        [("downstream_node_to_trace.node_index.tensor_indices", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [lambda one: setattr(one, "prompt", ""), ablated(NEURON, 9, -1, 500), traced(HEAD, 0, 1, 1, 1)],
        [
            ("prompt", "EMPTY_PROMPT"),
            ("node_ablations[0].node_index.layer_index", "LAYER_OUT_OF_RANGE"),
            ("node_ablations[0].node_index.tensor_indices[0]", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("node_ablations[0].node_index.tensor_indices[1]", "TENSOR_INDEX_OUT_OF_RANGE"),
            ("upstream_node_to_trace.attention_trace_type", "ATTENTION_TRACE_TYPE_REQUIRED"),
        ],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSALS, ids=names(REFUSALS))
def test_refused_naming_every_field(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(debug(*changes)) == [(f"sub_requests[0].{field}", reason) for field, reason in expected]


@pytest.mark.parametrize(
    "downstream",
    [
        towards(NEURON, 1, 4, 1),
        towards(NEURON, 2, 4, 1),
        towards(HEAD, 2, 4, 1, 0, trace_type=Q),
        towards(HEAD, 2, 6, 4, 0, trace_type=K),
        towards(HEAD, 2, 6, 4, 0, trace_type=QK),
        towards(HEAD, 2, 4, 1, 0, trace_type=QK),
        towards(MLP_LATENT, 1, 4, 5),
        towards(ATTENTION_LATENT, 2, 8, 5),
    ],
)
def test_downstream_nodes_that_see_the_write(downstream: Change) -> None:
    assert parse(debug(V_TRACE, downstream), model(Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN))


def test_a_latent_of_attention_before_the_write_is_refused() -> None:
    info = model(Site.RESID_DELTA_ATTN)
    path = "sub_requests[0].downstream_node_to_trace.node_index"
    request = debug(V_TRACE, towards(LATENT, 1, 3, 5))
    assert violations(request, info) == [
        (f"{path}.layer_index", "DOWNSTREAM_NOT_AFTER_UPSTREAM"),
        (f"{path}.tensor_indices", "DOWNSTREAM_NOT_AFTER_UPSTREAM"),
    ]


def test_ablating_the_same_row_twice_to_one_value_is_fine() -> None:
    assert parse(debug(ablated(HEAD, 0, 5, 1, 2), ablated(HEAD, 0, 5, 3, 2)))


MLP_ONLY, BOTH = model(Site.RESID_DELTA_MLP), model(Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)


@pytest.mark.parametrize(
    ("change", "info", "expected"),
    [
        (ablated(MLP_LATENT, 0, 1, 1), model(), ("node_type", "AUTOENCODER_NOT_LOADED")),
        (ablated(ATTENTION_LATENT, 0, 1, 1), MLP_ONLY, ("node_type", "AUTOENCODER_NOT_LOADED")),
        (ablated(LATENT, 0, 1, 1), model(), ("node_type", "AUTOENCODER_NOT_LOADED")),
        (ablated(LATENT, 0, 1, 1), BOTH, ("node_type", "AUTOENCODER_AMBIGUOUS")),
        (
            ablated(MLP_LATENT, 2, 1, 1),
            model(Site.MLP_POST_ACT, layers=(0, 1)),
            ("layer_index", "AUTOENCODER_NOT_LOADED"),
        ),
    ],
)
def test_latents_need_their_autoencoder(change: Change, info: ModelInfo, expected: tuple[str, str]) -> None:
    with pytest.raises(FailedPrecondition):
        parse(debug(change), info)
    field, reason = expected
    assert violations(debug(change), info) == [
        (f"sub_requests[0].node_ablations[0].node_index.{field}", reason)
    ]


def test_a_latent_out_of_range() -> None:
    field = "sub_requests[0].node_ablations[0].node_index.tensor_indices[1]"
    assert violations(debug(ablated(LATENT, 0, 1, 96)), MLP_ONLY) == [(field, "TENSOR_INDEX_OUT_OF_RANGE")]


def test_what_is_loaded_matters_less_than_what_is_wrong() -> None:
    request = debug(ablated(LATENT, 0, 1, 1), lambda one: setattr(one, "top_and_bottom_k", 0))
    assert [reason for _, reason in violations(request)] == ["OUT_OF_RANGE", "AUTOENCODER_NOT_LOADED"]


@pytest.mark.parametrize("field", ["component_type_for_mlp", "component_type_for_attention"])
def test_component_types_need_their_autoencoder(field: str) -> None:
    request = debug(lambda one: setattr(one, field, 2))
    with pytest.raises(FailedPrecondition):
        parse(request)
    assert violations(request) == [(f"sub_requests[0].{field}", "AUTOENCODER_NOT_LOADED")]
    assert parse(request, BOTH)


def of_stream(*numbers: int) -> Change:
    return lambda one: one.component_types_for_residual_stream.extend(numbers)


POST_ATTN, POST_MLP = 1, 2
STREAM_SITES = Site.RESID_POST_ATTN, Site.RESID_POST_MLP
STREAM = model(*STREAM_SITES)


SCALARS = {
    GroupId.WRITE_NORM: "WRITE_NORM",
    GroupId.ACT_TIMES_GRAD: "ACT_TIMES_GRAD",
    GroupId.DIRECTION_WRITE: "WRITE_TO_FINAL_RESIDUAL_GRAD",
    GroupId.ACTIVATION: "LATENT",
}


@pytest.mark.parametrize(
    ("numbers", "places"),
    [
        ([POST_ATTN], ["POST_ATTN"]),
        ([POST_MLP, POST_MLP], ["POST_MLP"]),
        ([POST_MLP, POST_ATTN], ["POST_ATTN", "POST_MLP"]),
    ],
)
def test_components_of_the_residual_stream(numbers: list[int], places: list[str]) -> None:
    """They join the node table, and nothing else changes."""
    (plain,), (found,) = parse(debug(), STREAM), parse(debug(of_stream(*numbers)), STREAM)
    table, of_plain = (one.processing.pop("topKComponents") for one in (found, plain))
    assert found == plain
    joined = tuple(
        (
            group,
            (
                *scalars,
                *(DerivedScalar[f"ONLINE_RESID_{one}_AUTOENCODER_{SCALARS[group]}"] for one in places),
            ),
        )
        for group, scalars in of_plain.groups
    )
    assert table == replace(of_plain, groups=joined)


def test_components_of_the_residual_stream_need_their_dictionary() -> None:
    field = "sub_requests[0].component_types_for_residual_stream"
    for change, info, expected in (
        (of_stream(POST_MLP), model(), f"{field}[0]"),
        (of_stream(POST_ATTN, POST_MLP), model(Site.RESID_POST_ATTN), f"{field}[1]"),
        (of_stream(POST_ATTN), model(Site.RESID_POST_MLP, Site.RESID_DELTA_MLP), f"{field}[0]"),
    ):
        with pytest.raises(FailedPrecondition):
            parse(debug(change), info)
        assert violations(debug(change), info) == [(expected, "AUTOENCODER_NOT_LOADED")]


def test_components_of_the_residual_stream_that_there_are_not() -> None:
    field = "sub_requests[0].component_types_for_residual_stream"
    assert violations(debug(of_stream(POST_MLP, 9, 0)), STREAM) == [(field, "OUT_OF_RANGE")]
    assert violations(debug(of_stream(9, 0)), STREAM) == [
        (f"{field}[0]", "UNKNOWN_ENUM_VALUE"),
        (f"{field}[1]", "FIELD_REQUIRED"),
    ]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("component_type_for_mlp", lambda one: setattr(one, "component_type_for_mlp", 2)),
        ("component_type_for_attention", lambda one: setattr(one, "component_type_for_attention", 2)),
        ("component_types_for_residual_stream", of_stream(POST_MLP)),
    ],
)
def test_sub_requests_share_their_components(field: str, change: Change) -> None:
    info = model(Site.MLP_POST_ACT, Site.RESID_DELTA_ATTN, *STREAM_SITES)
    request = DebugRequest(sub_requests=[*debug().sub_requests, *debug(change).sub_requests])
    assert violations(request, info) == [(f"sub_requests[1].{field}", "SPECS_DIFFER")]
    orders = [
        debug(of_stream(*one)).sub_requests[0] for one in ((POST_ATTN, POST_MLP), (POST_MLP, POST_ATTN))
    ]
    assert len(parse(DebugRequest(sub_requests=orders), info)) == 2


def test_prompts_of_unequal_length_are_told_with_their_tokens() -> None:
    request = DebugRequest(
        sub_requests=[*debug().sub_requests, *debug(lambda one: setattr(one, "prompt", "The")).sub_requests]
    )
    with pytest.raises(Exception, match=r"not 9, 1: \['The', ' c'.*\]; \['The'\]"):
        parse(request)
    assert violations(request) == [("sub_requests", "UNEQUAL_PROMPT_LENGTHS")]


@pytest.mark.parametrize(
    ("limits", "changes", "field"),
    [
        (replace(LIMITS, max_top_and_bottom_k=4), [], "sub_requests[0].top_and_bottom_k"),
        (
            replace(LIMITS, max_node_ablations=1),
            [ablated(NEURON, 0, 1, 1), ablated(NEURON, 0, 1, 2)],
            "sub_requests[0].node_ablations",
        ),
        (replace(LIMITS, max_sub_requests=0), [], "sub_requests"),
    ],
)
def test_over_a_limit(limits: Limits, changes: list[Change], field: str) -> None:
    with pytest.raises(OverLimit, match=field.replace("[", r"\[").replace("]", r"\]")) as caught:
        parse(debug(*changes), limits=limits)
    assert caught.value.retry_after_seconds is None


def test_the_limit_of_prompt_tokens() -> None:
    limits = replace(LIMITS, max_prompt_tokens=8)
    assert violations(debug(), limits=limits) == [("sub_requests[0].prompt", "PROMPT_TOO_LONG")]


def test_tokens_outside_the_models_vocabulary() -> None:
    info = replace(model(), vocabulary_size=300)
    fields = dict(violations(debug(), info))
    assert fields["sub_requests[0].prompt"] == "UNKNOWN_TOKEN_ID"


@pytest.mark.parametrize("request_id", ["a" * 129, "é", "a\nb"])
def test_request_ids(request_id: str) -> None:
    request = debug()
    request.request_id = request_id
    assert violations(request) == [("request_id", "MALFORMED_REQUEST")]

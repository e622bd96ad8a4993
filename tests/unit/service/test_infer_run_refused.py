"""Every way in which a general request is refused for how it is to be run."""

from __future__ import annotations

import math

import pytest
from tdb_server.domain.hook_point import HookPoint
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage
from transformer_debugger.v1.activation_pb2 import TensorIndex

from tests.unit.service.infer_changes import (
    ALL,
    ATTENTION_AUTOENCODER,
    BACKWARD,
    HEAD,
    MLP_AUTOENCODER,
    NEURON,
    ablated,
    at,
    loss,
    traced,
    without_loss,
)
from tests.unit.service.tiny_requests import Change, infer, names, node, parse, violations

INDEX = "inference_spec.ablation_specs[0].index"
TRACE = "inference_spec.trace_config"
HOW_IT_IS_RUN: list[tuple[list[Change], list[tuple[str, str]]]] = [
    (
        [lambda one: one.ClearField("inference_spec")],
        [("inference_spec", "FIELD_REQUIRED"), ("inference_spec.prompt", "EMPTY_PROMPT")],
    ),
    ([loss(0)], [("inference_spec.loss_fn_config.name", "FIELD_REQUIRED")]),
    ([loss(9)], [("inference_spec.loss_fn_config.name", "UNKNOWN_ENUM_VALUE")]),
    ([loss(3, ())], [("inference_spec.loss_fn_config.target_tokens", "FIELD_REQUIRED")]),
    ([loss(3, (" the", ""))], [("inference_spec.loss_fn_config.target_tokens[1]", "NOT_ONE_TOKEN")]),
    (
        [loss(2, (" the",), (" of",))],
        [("inference_spec.loss_fn_config.distractor_tokens", "FIELD_NOT_ALLOWED")],
    ),
    ([traced(node(NEURON, 1, 2, 5))], [("inference_spec.loss_fn_config", "LOSS_AND_TRACE")]),
    (
        [without_loss, traced(node(HEAD, 1, 4, 2, 0), trace_type=4)],
        [("inference_spec.loss_fn_config", "OBJECTIVE_REQUIRED")],
    ),
    (
        [traced(node(HEAD, 1, 4, 2, 0), trace_type=4, downstream=node(NEURON, 1, 4, 3))],
        [("inference_spec.loss_fn_config", "LOSS_AND_TRACE")],
    ),
    (
        [without_loss, traced(node(NEURON, 1, 2, 5), pre_or_post_act=7)],
        [(f"{TRACE}.pre_or_post_act", "UNKNOWN_ENUM_VALUE")],
    ),
    (
        [traced(node(HEAD, 1, 4, 2, 0), trace_type=4, pre_or_post_act=2)],
        [(f"{TRACE}.pre_or_post_act", "FIELD_NOT_ALLOWED")],
    ),
    (
        [without_loss, traced(node(NEURON, 1, 2, 5), downstream=node(NEURON, 2, 2, 3))],
        [(f"{TRACE}.downstream_trace_config", "DOWNSTREAM_WITHOUT_V")],
    ),
    (
        [without_loss, traced(node(HEAD, 1, 4, 2, 0), trace_type=4, downstream=node(NEURON, 0, 4, 3))],
        [(f"{TRACE}.downstream_trace_config.node_index.layer_index", "DOWNSTREAM_NOT_AFTER_UPSTREAM")],
    ),
    (
        [lambda one: one.inference_spec.ablation_specs.add()],
        [(INDEX, "FIELD_REQUIRED")],
    ),
    (
        [ablated(ActivationIndexMessage(tensor_indices=[ALL]))],
        [(f"{INDEX}.activation_location_type", "FIELD_REQUIRED")],
    ),
    (
        [ablated(at(HookPoint.MLP_POST_ACT, 0, TensorIndex(), TensorIndex(all=False)))],
        [(f"{INDEX}.tensor_indices[0]", "FIELD_REQUIRED"), (f"{INDEX}.tensor_indices[1]", "FIELD_REQUIRED")],
    ),
    ([ablated(at(HookPoint.LOGITS, 0, ALL, ALL))], [(f"{INDEX}.layer_index", "FIELD_NOT_ALLOWED")]),
    ([ablated(at(HookPoint.ATTN_Q, None, ALL, ALL, ALL))], [(f"{INDEX}.layer_index", "FIELD_REQUIRED")]),
    ([ablated(at(HookPoint.ATTN_Q, 1, ALL, ALL))], [(f"{INDEX}.tensor_indices", "WRONG_NUMBER_OF_INDICES")]),
    (
        [ablated(at(HookPoint.ATTN_Q, 1, 9, 4, 12))],
        [(f"{INDEX}.tensor_indices[{i}]", "TENSOR_INDEX_OUT_OF_RANGE") for i in range(3)],
    ),
    (
        [ablated(at(HookPoint.ATTN_QK_LOGITS, 1, 2, 3, ALL))],
        [(f"{INDEX}.tensor_indices", "MASKED_ATTENTION_CELL")],
    ),
    (
        [without_loss, ablated(at(HookPoint.MLP_POST_ACT, 0, ALL, 3, pass_type=BACKWARD))],
        [(f"{INDEX}.pass_type", "OBJECTIVE_REQUIRED")],
    ),
    (
        [ablated(at(HookPoint.MLP_POST_ACT, 0, ALL, 3), math.inf)],
        [("inference_spec.ablation_specs[0].value", "NOT_FINITE")],
    ),
    (
        [ablated(at(HookPoint.MLP_POST_ACT, 0, ALL, 3)), ablated(at(HookPoint.MLP_POST_ACT, 0, 2, ALL), 1.0)],
        [("inference_spec.ablation_specs[1]", "DUPLICATE_ABLATION")],
    ),
]


@pytest.mark.parametrize(("changes", "expected"), HOW_IT_IS_RUN, ids=names(HOW_IT_IS_RUN))
def test_how_it_is_run_is_refused(changes: list[Change], expected: list[tuple[str, str]]) -> None:
    assert violations(infer(*changes)) == [(f"sub_requests[0].{field}", reason) for field, reason in expected]


def test_an_autoencoder_by_two_names_is_one() -> None:
    request = infer(
        ablated(at(HookPoint.ONLINE_AUTOENCODER_LATENT, 0, 1, 3)),
        ablated(at(HookPoint.ONLINE_MLP_AUTOENCODER_LATENT, 0, 1, 3), 1.0),
    )
    field = "sub_requests[0].inference_spec.ablation_specs[1]"
    assert violations(request, MLP_AUTOENCODER) == [(field, "DUPLICATE_ABLATION")]


def test_the_error_of_an_autoencoder_is_as_wide_as_its_site() -> None:
    request = infer(ablated(at(HookPoint.ONLINE_AUTOENCODER_ERROR, 0, 1, 191)))
    assert parse(request, MLP_AUTOENCODER)
    field = "sub_requests[0].inference_spec.ablation_specs[0].index.tensor_indices[1]"
    assert violations(request, ATTENTION_AUTOENCODER) == [(field, "TENSOR_INDEX_OUT_OF_RANGE")]

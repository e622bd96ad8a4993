"""Sound requests of every kind, for hostile ones to be made of."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message
from transformer_debugger.v1 import (
    ablation_pb2,
    activation_pb2,
    backward_rule_pb2,
    loss_pb2,
    model_service_pb2,
    node_pb2,
    trace_pb2,
)
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2

from tests.chaos.requests import debug_request


def debug_requests() -> Sequence[service_pb2.DebugRequest]:
    """With ablations, several sub-requests, a trace, latents, comparisons, and a loss of one's own."""
    head = node_pb2.NodeIndex(
        node_type=node_pb2.NODE_TYPE_ATTENTION_HEAD, layer_index=1, tensor_indices=(3, 1, 2)
    )
    traced, latents = debug_request(), debug_request(n_sub_requests=2)
    trace = traced.sub_requests[0].upstream_node_to_trace
    trace.node_index.CopyFrom(head)
    trace.attention_trace_type = trace_pb2.ATTENTION_TRACE_TYPE_V
    for one in latents.sub_requests:
        one.component_type_for_mlp = service_pb2.COMPONENT_TYPE_FOR_MLP_AUTOENCODER_LATENT
        one.component_type_for_attention = service_pb2.COMPONENT_TYPE_FOR_ATTENTION_AUTOENCODER_LATENT
    return (
        debug_request(ablated_neurons=(1, 2)),
        debug_request(n_sub_requests=3, k=20),
        traced,
        latents,
        compared_request(),
        direction_request(),
    )


def compared_request() -> service_pb2.DebugRequest:
    """With baselines, a circuit, another backward rule, and values that come from the baseline."""
    request = debug_request(ablated_neurons=(1, 2, 3), n_sub_requests=2)
    for one in request.sub_requests:
        one.baseline_prompts.extend(["the cat sat on of", "the cat sat on the"])
        one.backward_rule = backward_rule_pb2.BACKWARD_RULE_RELP
        one.attention_pattern_gradients = True
        one.component_type_for_attention = service_pb2.COMPONENT_TYPE_FOR_ATTENTION_WHOLE_HEAD
        one.component_type_for_mlp = service_pb2.COMPONENT_TYPE_FOR_MLP_WHOLE_MLP
        one.component_totals = one.omit_token_lists = True
        kinds = (
            ablation_pb2.ABLATION_VALUE_TYPE_BASELINE,
            ablation_pb2.ABLATION_VALUE_TYPE_SCALE,
            ablation_pb2.ABLATION_VALUE_TYPE_ADD,
        )
        for ablation, kind in zip(one.node_ablations, kinds, strict=True):
            ablation.value_type = kind
    circuit = request.sub_requests[1].only_these
    circuit.node_types.extend([node_pb2.NODE_TYPE_WHOLE_HEAD, node_pb2.NODE_TYPE_WHOLE_MLP])
    circuit.nodes.add(
        node_type=node_pb2.NODE_TYPE_WHOLE_HEAD, layer_index=1, component_index=2, token_index=3
    )
    return request


def direction_request() -> service_pb2.DebugRequest:
    """With a loss along a vector, and latents of the residual stream, whose dictionary is not loaded."""
    request = debug_request()
    (one,) = request.sub_requests
    one.ClearField("target_tokens")
    one.loss_fn_config.name = loss_pb2.LOSS_FN_NAME_DIRECTION
    one.loss_fn_config.token_index = -1
    one.loss_fn_config.direction.place = activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_POST_MLP
    one.loss_fn_config.direction.layer_index = 1
    one.loss_fn_config.direction.vector.extend([0.5] * 48)
    one.component_types_for_residual_stream.append(
        service_pb2.COMPONENT_TYPE_FOR_RESIDUAL_STREAM_POST_MLP_LATENT
    )
    return request


def model_requests() -> Sequence[Message]:
    """Of the other service."""
    return (
        model_service_pb2.TokenizeRequest(text="the cat sat"),
        model_service_pb2.DetokenizeRequest(token_ids=[1, 2, 3]),
        model_service_pb2.GetModelInfoRequest(),
    )

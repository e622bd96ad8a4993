"""Sound requests of every kind, for hostile ones to be made of."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message
from transformer_debugger.v1 import model_service_pb2, node_pb2, trace_pb2
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2

from tests.chaos.requests import debug_request


def debug_requests() -> Sequence[service_pb2.DebugRequest]:
    """With ablations, several sub-requests, a trace, and latents."""
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
    return debug_request(ablated_neurons=(1, 2)), debug_request(n_sub_requests=3, k=20), traced, latents


def model_requests() -> Sequence[Message]:
    """Of the other service."""
    return (
        model_service_pb2.TokenizeRequest(text="the cat sat"),
        model_service_pb2.DetokenizeRequest(token_ids=[1, 2, 3]),
        model_service_pb2.GetModelInfoRequest(),
    )

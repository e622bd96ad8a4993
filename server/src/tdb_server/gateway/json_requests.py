"""Bodies of the reference's HTTP API as requests of the service."""

from __future__ import annotations

from typing import Any

from transformer_debugger.v1.ablation_pb2 import AblationSpec, NodeAblation
from transformer_debugger.v1.activation_pb2 import ActivationIndex, TensorIndex
from transformer_debugger.v1.loss_pb2 import LossFnConfig
from transformer_debugger.v1.node_pb2 import NodeIndex
from transformer_debugger.v1.trace_pb2 import (
    PRE_OR_POST_ACT_POST,
    PRE_OR_POST_ACT_PRE,
    PRE_OR_POST_ACT_UNSPECIFIED,
    NodeToTrace,
    TraceConfig,
)
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    InferRequest,
)

from tdb_server.gateway import json_bodies as bodies
from tdb_server.gateway.json_faults import read_body
from tdb_server.gateway.json_processing import SINGLE_SPECS, named_spec
from tdb_server.service.enum_names import (
    ATTENTION_COMPONENTS,
    ATTENTION_TRACE_TYPES,
    LOSS_NAMES,
    MLP_COMPONENTS,
    NODE_TYPES,
    PASS_TYPES,
    PLACES,
)

_PRE_OR_POST_ACT = {
    None: PRE_OR_POST_ACT_UNSPECIFIED,
    bodies.PreOrPostAct.PRE: PRE_OR_POST_ACT_PRE,
    bodies.PreOrPostAct.POST: PRE_OR_POST_ACT_POST,
}


def debug_request(body: Any) -> DebugRequest:
    """The body of `/batched_tdb`.

    Raises:
        InvalidRequest: a value is not of the type it should be.
    """
    read = read_body(bodies.BatchedTdbRequest, body)
    return DebugRequest(sub_requests=[_debug_sub_request(one) for one in read.sub_requests or ()])


def infer_request(body: Any) -> InferRequest:
    """The body of `/batched`; raises as `debug_request`."""
    read = read_body(bodies.BatchedRequest, body)
    return InferRequest(
        sub_requests=[
            InferenceSubRequest(
                inference_spec=_inference_spec(one.inference_request_spec),
                processing_specs=[
                    named_spec(name, spec)
                    for name, spec in (one.processing_request_spec_by_name or {}).items()
                ],
            )
            for one in read.inference_sub_requests or ()
        ]
    )


def single_infer_request(endpoint: str, body: Any) -> InferRequest:
    """The body of an endpoint that answers one processing spec; raises as `debug_request`.

    Args:
        endpoint: its name, a key of `SINGLE_SPECS`.
        body: the body. The spec gets the name that its answer has in the response's body.
    """
    single = SINGLE_SPECS[endpoint]
    read = read_body(single.body, body)
    spec = single.spec(read)
    return InferRequest(
        sub_requests=[
            InferenceSubRequest(
                inference_spec=_inference_spec(read.inference_request_spec),
                processing_specs=[] if spec is None else [named_spec(single.response_key, spec)],
            )
        ]
    )


def _debug_sub_request(body: bodies.TdbRequestSpec) -> DebugSubRequest:
    return DebugSubRequest(
        prompt=body.prompt or "",
        target_tokens=body.target_tokens,
        distractor_tokens=body.distractor_tokens,
        component_type_for_mlp=MLP_COMPONENTS.number(body.component_type_for_mlp),
        component_type_for_attention=ATTENTION_COMPONENTS.number(body.component_type_for_attention),
        top_and_bottom_k=body.top_and_bottom_k_for_node_table,
        hide_early_layers_when_ablating=body.hide_early_layers_when_ablating or False,
        node_ablations=[
            NodeAblation(node_index=_node_index(one.node_index), value=one.value or 0.0)
            for one in body.node_ablations or ()
        ],
        upstream_node_to_trace=_node_to_trace(body.upstream_node_to_trace),
        downstream_node_to_trace=_node_to_trace(body.downstream_node_to_trace),
        target_token_ids=body.target_token_ids,
        distractor_token_ids=body.distractor_token_ids,
        add_bos=body.add_bos,
    )


def _inference_spec(body: bodies.InferenceRequestSpec | None) -> InferenceSpec | None:
    if body is None:
        return None
    return InferenceSpec(
        prompt=body.prompt or "",
        loss_fn_config=_loss(body.loss_fn_config),
        trace_config=_trace_config(body.trace_config),
        ablation_specs=[
            AblationSpec(index=_activation_index(one.index), value=one.value or 0.0)
            for one in body.ablation_specs or ()
        ],
        activation_index_for_within_layer_grad=_activation_index(body.activation_index_for_within_layer_grad),
        add_bos=body.add_bos,
    )


def _loss(body: bodies.LossFnConfig | None) -> LossFnConfig | None:
    if body is None:
        return None
    return LossFnConfig(
        name=LOSS_NAMES.number(body.name),
        target_tokens=body.target_tokens,
        distractor_tokens=body.distractor_tokens,
        target_token_ids=body.target_token_ids,
        distractor_token_ids=body.distractor_token_ids,
    )


def _node_to_trace(body: bodies.NodeToTrace | None) -> NodeToTrace | None:
    if body is None:
        return None
    return NodeToTrace(
        node_index=_node_index(body.node_index),
        attention_trace_type=ATTENTION_TRACE_TYPES.number(body.attention_trace_type),
    )


def _trace_config(body: bodies.MirroredTraceConfig | None) -> TraceConfig | None:
    if body is None:
        return None
    return TraceConfig(
        node_index=_node_index(body.node_index),
        attention_trace_type=ATTENTION_TRACE_TYPES.number(body.attention_trace_type),
        pre_or_post_act=_PRE_OR_POST_ACT[body.pre_or_post_act],
        downstream_trace_config=_trace_config(body.downstream_trace_config),
    )


def _node_index(body: bodies.MirroredNodeIndex | None) -> NodeIndex | None:
    if body is None:
        return None
    return NodeIndex(
        node_type=NODE_TYPES.number(body.node_type),
        layer_index=body.layer_index,
        tensor_indices=body.tensor_indices,
        pass_type=PASS_TYPES.number(body.pass_type),
    )


def _activation_index(body: bodies.MirroredActivationIndex | None) -> ActivationIndex | None:
    """An activation index; axes that are left out at the end are "All", as in the reference."""
    if body is None:
        return None
    indices = [
        TensorIndex(all=True) if isinstance(one, str) else TensorIndex(index=one)
        for one in body.tensor_indices or ()
    ]
    place = body.activation_location_type
    if place is not None:
        n_axes = len(place.dimensions)
        indices += [TensorIndex(all=True)] * (n_axes - len(indices))
    return ActivationIndex(
        activation_location_type=PLACES.number(place),
        layer_index=body.layer_index,
        tensor_indices=indices,
        pass_type=PASS_TYPES.number(body.pass_type),
    )

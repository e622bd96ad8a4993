"""Bodies of the reference's HTTP API as requests of the service."""

from __future__ import annotations

from enum import Enum
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

from tdb_server.domain.place import PLACE_SHAPES, Place
from tdb_server.domain.reason import Reason
from tdb_server.gateway.json_processing import SINGLE_SPECS, named_spec
from tdb_server.gateway.json_reader import JsonObject, as_integer, as_list, as_string, malformed
from tdb_server.service.enum_names import (
    ATTENTION_COMPONENTS,
    ATTENTION_TRACE_TYPES,
    LOSS_NAMES,
    MLP_COMPONENTS,
    NODE_TYPES,
    PASS_TYPES,
    PLACES,
)

_ALL = "All"
_MAX_DOWNSTREAM_NODES = 2
"""One makes sense; a second is passed on, so that the service can say why it does not."""


class _PreOrPostAct(Enum):
    PRE = "pre"
    POST = "post"


_PRE_OR_POST_ACT = {
    None: PRE_OR_POST_ACT_UNSPECIFIED,
    _PreOrPostAct.PRE: PRE_OR_POST_ACT_PRE,
    _PreOrPostAct.POST: PRE_OR_POST_ACT_POST,
}


def debug_request(body: Any) -> DebugRequest:
    """The body of `/batched_tdb`.

    Raises:
        InvalidRequest: a value is not of the type it should be.
    """
    return DebugRequest(
        sub_requests=[_debug_sub_request(one) for one in JsonObject(body).objects("subRequests")]
    )


def infer_request(body: Any) -> InferRequest:
    """The body of `/batched`; raises as `debug_request`."""
    return InferRequest(
        sub_requests=[_inference_sub_request(one) for one in JsonObject(body).objects("inferenceSubRequests")]
    )


def single_infer_request(endpoint: str, body: Any) -> InferRequest:
    """The body of an endpoint that answers one processing spec; raises as `debug_request`.

    Args:
        endpoint: its name, a key of `SINGLE_SPECS`.
        body: the body. The spec gets the name that its answer has in the response's body.
    """
    single = SINGLE_SPECS[endpoint]
    whole = JsonObject(body)
    request = InferRequest()
    sub_request = request.sub_requests.add()
    _set_inference(sub_request, whole)
    spec = whole.object(single.request_key)
    if spec is not None:
        sub_request.processing_specs.append(named_spec(single.response_key, spec, single.spec_type))
    return request


def _debug_sub_request(body: JsonObject) -> DebugSubRequest:
    upstream, downstream = body.object("upstreamNodeToTrace"), body.object("downstreamNodeToTrace")
    return DebugSubRequest(
        prompt=body.string("prompt"),
        target_tokens=body.strings("targetTokens"),
        distractor_tokens=body.strings("distractorTokens"),
        component_type_for_mlp=body.number_of("componentTypeForMlp", MLP_COMPONENTS),
        component_type_for_attention=body.number_of("componentTypeForAttention", ATTENTION_COMPONENTS),
        top_and_bottom_k=body.integer("topAndBottomKForNodeTable"),
        hide_early_layers_when_ablating=body.boolean("hideEarlyLayersWhenAblating") or False,
        node_ablations=[_node_ablation(one) for one in body.objects("nodeAblations")],
        upstream_node_to_trace=None if upstream is None else _node_to_trace(upstream),
        downstream_node_to_trace=None if downstream is None else _node_to_trace(downstream),
    )


def _inference_sub_request(body: JsonObject) -> InferenceSubRequest:
    sub_request = InferenceSubRequest()
    _set_inference(sub_request, body)
    specs = body.object("processingRequestSpecByName")
    if specs is not None:
        for name, spec in specs.items():
            path = specs.path(as_string(name, specs.path(repr(name))))
            sub_request.processing_specs.append(named_spec(name, JsonObject(spec, path)))
    return sub_request


def _set_inference(sub_request: InferenceSubRequest, body: JsonObject) -> None:
    spec = body.object("inferenceRequestSpec")
    if spec is not None:
        sub_request.inference_spec.CopyFrom(_inference_spec(spec))


def _inference_spec(body: JsonObject) -> InferenceSpec:
    loss, trace = body.object("lossFnConfig"), body.object("traceConfig")
    latent = body.object("activationIndexForWithinLayerGrad")
    return InferenceSpec(
        prompt=body.string("prompt"),
        loss_fn_config=None if loss is None else _loss(loss),
        trace_config=None if trace is None else _trace_config(trace, _MAX_DOWNSTREAM_NODES),
        ablation_specs=[_ablation_spec(one) for one in body.objects("ablationSpecs")],
        activation_index_for_within_layer_grad=None if latent is None else _activation_index(latent),
    )


def _loss(body: JsonObject) -> LossFnConfig:
    return LossFnConfig(
        name=body.number_of("name", LOSS_NAMES),
        target_tokens=body.strings("targetTokens"),
        distractor_tokens=body.strings("distractorTokens"),
    )


def _node_ablation(body: JsonObject) -> NodeAblation:
    node = body.object("nodeIndex")
    return NodeAblation(node_index=None if node is None else _node_index(node), value=body.number("value"))


def _ablation_spec(body: JsonObject) -> AblationSpec:
    index = body.object("index")
    return AblationSpec(index=None if index is None else _activation_index(index), value=body.number("value"))


def _node_to_trace(body: JsonObject) -> NodeToTrace:
    if body.value("downstreamTraceConfig") is not None:
        raise malformed(
            body.path("downstreamTraceConfig"),
            "must be null; give the downstream node as downstreamNodeToTrace",
            Reason.FIELD_NOT_ALLOWED,
        )
    node = body.object("nodeIndex")
    return NodeToTrace(
        node_index=None if node is None else _node_index(node),
        attention_trace_type=body.number_of("attentionTraceType", ATTENTION_TRACE_TYPES),
    )


def _trace_config(body: JsonObject, n_downstream: int) -> TraceConfig:
    if body.boolean("detachLayerNormScale") is False:
        raise malformed(
            body.path("detachLayerNormScale"),
            "a trace always holds the scale of the norm it reads through constant",
            Reason.FIELD_NOT_ALLOWED,
        )
    node, downstream = body.object("nodeIndex"), body.object("downstreamTraceConfig")
    if downstream is not None and n_downstream == 0:
        raise malformed(body.path("downstreamTraceConfig"), "is nested too deeply")
    return TraceConfig(
        node_index=None if node is None else _node_index(node),
        attention_trace_type=body.number_of("attentionTraceType", ATTENTION_TRACE_TYPES),
        pre_or_post_act=_PRE_OR_POST_ACT[body.member("preOrPostAct", _PreOrPostAct)],
        downstream_trace_config=None if downstream is None else _trace_config(downstream, n_downstream - 1),
    )


def _node_index(body: JsonObject) -> NodeIndex:
    return NodeIndex(
        node_type=body.number_of("nodeType", NODE_TYPES),
        layer_index=body.integer("layerIndex"),
        tensor_indices=body.integers("tensorIndices"),
        pass_type=body.number_of("passType", PASS_TYPES),
    )


def _activation_index(body: JsonObject) -> ActivationIndex:
    """An activation index; axes that are left out at the end are "All", as in the reference."""
    place = body.member("activationLocationType", Place)
    path = body.path("tensorIndices")
    given = as_list(body.value("tensorIndices") or [], path)
    indices = [_tensor_index(one, f"{path}[{i}]") for i, one in enumerate(given)]
    if place is not None:
        n_axes = len(PLACE_SHAPES[place].dimensions)
        indices += [TensorIndex(all=True)] * (n_axes - len(indices))
    return ActivationIndex(
        activation_location_type=body.number_of("activationLocationType", PLACES),
        layer_index=body.integer("layerIndex"),
        tensor_indices=indices,
        pass_type=body.number_of("passType", PASS_TYPES),
    )


def _tensor_index(value: Any, path: str) -> TensorIndex:
    if value == _ALL:
        return TensorIndex(all=True)
    if isinstance(value, str):
        raise malformed(path, f'must be a whole number or "{_ALL}"')
    return TensorIndex(index=as_integer(value, path))

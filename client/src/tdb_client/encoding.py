"""Requests as the protos' messages."""

from __future__ import annotations

from collections.abc import Sequence

from transformer_debugger.v1 import (
    ablation_pb2,
    activation_pb2,
    backward_rule_pb2,
    circuit_pb2,
    edges_pb2,
    loss_pb2,
    node_pb2,
    processing_pb2,
    trace_pb2,
)
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.derived_scalar_pb2 import DerivedScalarType, GroupId

from tdb_client.edges import EdgesSubRequest
from tdb_client.errors import NodeError
from tdb_client.inference import (
    AblationSpec,
    ActivationIndex,
    ActivationsSpec,
    ComponentTotalsSpec,
    DerivedAttentionScalarsSpec,
    DerivedScalarsSpec,
    InferenceSubRequest,
    LensSpec,
    Loss,
    MultipleTopKSpec,
    ProcessingSpec,
    ResidualDirection,
    ScoredTokensSpec,
    Token,
    TokenPairAttributionSpec,
)
from tdb_client.interventions import Ablation, Trace
from tdb_client.names import enum_value
from tdb_client.nodes import Node, NodeType
from tdb_client.requests import DebugSubRequest
from tdb_client.value_check import check_text


def debug_request(
    sub_requests: Sequence[DebugSubRequest],
    *,
    request_id: str = "",
    validate_only: bool = False,
    priority: int = 0,
) -> service_pb2.DebugRequest:
    """The message for debug sub-requests.

    Raises:
        NodeError: a head is traced without its attended-to token.
        UnknownNameError: a component type does not exist.
    """
    check_text(request_id, "request_id")
    return service_pb2.DebugRequest(
        sub_requests=[_debug_sub_request(one) for one in sub_requests],
        request_id=request_id,
        validate_only=validate_only,
        priority=priority,  # type: ignore[arg-type]  # its number
    )


def infer_request(
    sub_requests: Sequence[InferenceSubRequest],
    *,
    request_id: str = "",
    validate_only: bool = False,
    priority: int = 0,
) -> service_pb2.InferRequest:
    """The message for general sub-requests.

    Raises:
        NodeError: a head is traced without its attended-to token.
        UnknownNameError: a derived scalar, group, place, ... does not exist.
    """
    check_text(request_id, "request_id")
    return service_pb2.InferRequest(
        sub_requests=[_inference_sub_request(one) for one in sub_requests],
        request_id=request_id,
        validate_only=validate_only,
        priority=priority,  # type: ignore[arg-type]  # its number
    )


def edges_request(
    sub_requests: Sequence[EdgesSubRequest],
    *,
    request_id: str = "",
    validate_only: bool = False,
    priority: int = 0,
) -> service_pb2.InferEdgesRequest:
    """The message for sub-requests of edges.

    Raises:
        UnknownNameError: a method or a loss does not exist.
    """
    check_text(request_id, "request_id")
    return service_pb2.InferEdgesRequest(
        sub_requests=[_edges_sub_request(one) for one in sub_requests],
        request_id=request_id,
        validate_only=validate_only,
        priority=priority,  # type: ignore[arg-type]  # its number
    )


def estimate_request(
    sub_requests: Sequence[DebugSubRequest | InferenceSubRequest | EdgesSubRequest],
) -> service_pb2.DebugRequest | service_pb2.InferRequest | service_pb2.InferEdgesRequest:
    """The message that asks for the cost of sub-requests, which are all of one kind.

    Raises:
        TypeError: they are not.
        NodeError, UnknownNameError: as above.
    """
    debug = [one for one in sub_requests if isinstance(one, DebugSubRequest)]
    inference = [one for one in sub_requests if isinstance(one, InferenceSubRequest)]
    edges = [one for one in sub_requests if isinstance(one, EdgesSubRequest)]
    if bool(debug) + bool(inference) + bool(edges) > 1:
        raise TypeError("debug, inference and edges sub-requests cannot share a call")
    if edges:
        return edges_request(edges, validate_only=True)
    return (
        infer_request(inference, validate_only=True)
        if inference
        else debug_request(debug, validate_only=True)
    )


def _debug_sub_request(request: DebugSubRequest) -> service_pb2.DebugSubRequest:
    return service_pb2.DebugSubRequest(
        prompt=request.prompt,
        target_tokens=_texts(request.target),
        distractor_tokens=_texts(request.distractor),
        component_type_for_mlp=enum_value(service_pb2.ComponentTypeForMlp, request.mlp),
        component_type_for_attention=enum_value(service_pb2.ComponentTypeForAttention, request.attention),
        top_and_bottom_k=request.k,
        component_types_for_residual_stream=[
            enum_value(service_pb2.ComponentTypeForResidualStream, one) for one in request.residual_stream
        ],
        hide_early_layers_when_ablating=request.hide_early_layers,
        node_ablations=[_node_ablation(one) for one in request.ablate],
        upstream_node_to_trace=_node_to_trace(request.trace, "trace"),
        downstream_node_to_trace=_node_to_trace(request.downstream, "downstream"),
        target_token_ids=_ids(request.target),
        distractor_token_ids=_ids(request.distractor),
        add_bos=request.add_bos,
        backward_rule=enum_value(backward_rule_pb2.BackwardRule, request.backward_rule),
        attention_pattern_gradients=request.attention_pattern_gradients,
        loss_fn_config=_loss(request.loss),
        omit_token_lists=not request.token_lists,
        omit_top_k_sums=not request.top_k_sums,
        component_totals=True,
        baseline_prompts=request.baseline,
        only_these=_circuit(request),
    )


def _circuit(request: DebugSubRequest | InferenceSubRequest) -> circuit_pb2.Circuit | None:
    if request.only_these is None:
        return None
    return circuit_pb2.Circuit(
        node_types=[enum_value(node_pb2.NodeType, one) for one in request.node_types],
        nodes=[
            circuit_pb2.CircuitNode(
                node_type=enum_value(node_pb2.NodeType, one.type),
                layer_index=one.layer,
                token_index=one.token,
                component_index=one.index,
            )
            for one in request.only_these
        ],
    )


def _edges_sub_request(request: EdgesSubRequest) -> edges_pb2.EdgesSubRequest:
    return edges_pb2.EdgesSubRequest(
        prompt=request.prompt,
        add_bos=request.add_bos,
        baseline_prompts=request.baselines,
        loss_fn_config=_loss(request.loss),
        method=enum_value(edges_pb2.EdgeMethod, request.method),
        steps=request.steps,
        top_k=request.k,
        whole_matrix=request.matrix,
    )


def node_index(node: Node) -> node_pb2.NodeIndex:
    """The message for a node whose tokens count from the start."""
    if node.type in ("qk_channel", "v_channel"):
        indices = [node.token, node.head or 0, node.index]
    else:
        indices = [node.token, *([] if node.attended_to is None else [node.attended_to]), node.index]
    return node_pb2.NodeIndex(
        node_type=enum_value(node_pb2.NodeType, node.type),
        layer_index=node.layer,
        tensor_indices=indices,
        pass_type=enum_value(node_pb2.PassType, "backward" if node.is_gradient else "forward"),
    )


def _node_ablation(ablation: Ablation) -> ablation_pb2.NodeAblation:
    index, is_head = node_index(ablation.node), ablation.node.type == "attention_head"
    is_row = is_head and ablation.node.attended_to is None
    if is_row:
        index.tensor_indices.insert(1, 0)  # any attended-to token names the row
    return ablation_pb2.NodeAblation(
        node_index=index,
        value=ablation.value,
        attended_to_token_only=is_head and not is_row,
        value_type=_value_type(ablation),
    )


def _value_type(ablation: Ablation | AblationSpec) -> ablation_pb2.AblationValueType.ValueType:
    """What is done with the value; left out where it is what older servers do."""
    known = "unspecified" if ablation.value_type == "number" else ablation.value_type
    return enum_value(ablation_pb2.AblationValueType, known)


def _traced(trace: Trace, path: str) -> tuple[node_pb2.NodeIndex, trace_pb2.AttentionTraceType.ValueType]:
    if trace.node.type == "attention_head" and trace.node.attended_to is None:
        example = f"{trace.node.component} @ {trace.node.token} -> 0"
        raise NodeError(f"{trace.node}: say which token it attends to, as in {example!r}", path)
    return node_index(trace.node), enum_value(trace_pb2.AttentionTraceType, trace.through or "unspecified")


def _node_to_trace(trace: Trace | None, path: str) -> trace_pb2.NodeToTrace | None:
    if trace is None:
        return None
    index, trace_type = _traced(trace, path)
    return trace_pb2.NodeToTrace(node_index=index, attention_trace_type=trace_type)


def _trace_config(
    trace: Trace | None, downstream: Trace | None = None, path: str = "trace"
) -> trace_pb2.TraceConfig | None:
    if trace is None:
        return None
    index, trace_type = _traced(trace, path)
    return trace_pb2.TraceConfig(
        node_index=index,
        attention_trace_type=trace_type,
        pre_or_post_act=enum_value(trace_pb2.PreOrPostAct, "post" if trace.post_act else "pre"),
        downstream_trace_config=_trace_config(downstream, path="downstream"),
    )


def _loss(loss: Loss | None) -> loss_pb2.LossFnConfig | None:
    if loss is None:
        return None
    name = enum_value(loss_pb2.LossFnName, loss.name)
    return loss_pb2.LossFnConfig(
        name=name,
        target_tokens=_texts(loss.target),
        distractor_tokens=_texts(loss.distractor),
        target_token_ids=_ids(loss.target),
        distractor_token_ids=_ids(loss.distractor),
        token_index=loss.token,
        target_weights=loss.target_weights,
        direction=_direction(loss.direction),
    )


def _direction(direction: ResidualDirection | None) -> loss_pb2.ResidualDirection | None:
    if direction is None:
        return None
    place = enum_value(activation_pb2.ActivationLocationType, direction.place)
    return loss_pb2.ResidualDirection(place=place, layer_index=direction.layer, vector=direction.vector)


def _texts(tokens: Sequence[Token]) -> list[str]:
    return [one for one in tokens if isinstance(one, str)]


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [one for one in tokens if not isinstance(one, str)]


def _activation_index(index: ActivationIndex) -> activation_pb2.ActivationIndex:
    axes = [
        activation_pb2.TensorIndex(all=True) if one is None else activation_pb2.TensorIndex(index=one)
        for one in index.indices
    ]
    return activation_pb2.ActivationIndex(
        activation_location_type=enum_value(activation_pb2.ActivationLocationType, index.place),
        layer_index=index.layer,
        tensor_indices=axes,
        pass_type=enum_value(node_pb2.PassType, index.pass_type),
    )


PLACES: dict[NodeType, str] = {
    "attention_head": "attn_qk_probs",
    "mlp_neuron": "mlp_post_act",
    "autoencoder_latent": "online_autoencoder_latent",
    "mlp_autoencoder_latent": "online_mlp_autoencoder_latent",
    "attention_autoencoder_latent": "online_attention_autoencoder_latent",
    "resid_post_attn_autoencoder_latent": "online_resid_post_attn_autoencoder_latent",
    "resid_post_mlp_autoencoder_latent": "online_resid_post_mlp_autoencoder_latent",
    "mlp_transcoder_latent": "online_mlp_transcoder_latent",
    "whole_head": "attn_v_out",
    "whole_mlp": "resid_delta_mlp",
}
"""The places of the activations of those nodes that can be ablated, by type of node."""

ABLATABLE = frozenset(PLACES)
"""The kinds of nodes that can be ablated."""


def ablated_cells(ablation: Ablation) -> AblationSpec:
    """The cells that an ablation of a node sets, which a debug request leaves to the server.

    Raises:
        NodeError: the node cannot be ablated, or only by a debug request.
    """
    node, is_patch = ablation.node, ablation.value_type == "baseline"
    if node.type not in PLACES:
        raise NodeError(f"{node} cannot be ablated; heads, neurons, latents and MLPs can")
    place, indices = PLACES[node.type], (node.token, node.index)
    match node.type:
        case "attention_head" if is_patch and node.attended_to is not None:
            raise NodeError(
                f"{ablation}: what a head reads from one token can be set to the baseline's in debug alone;"
                " name attn_qk_probs to set the pattern"
            )
        case "attention_head" if is_patch:  # the pattern says nothing without the values
            return _spec(ablation, "attn_v_out", (*indices, None))
        case "attention_head":
            return _spec(ablation, place, (node.token, node.attended_to, node.index))
        case "whole_head":
            return _spec(ablation, place, (*indices, None))
        case "whole_mlp":
            return _spec(ablation, place, (node.token, None))
    return _spec(ablation, place, indices)


def _spec(ablation: Ablation, place: str, indices: tuple[int | None, ...]) -> AblationSpec:
    index = ActivationIndex(place, ablation.node.layer, indices)
    return AblationSpec(index, ablation.value, ablation.value_type)


def _ablation_spec(spec: AblationSpec | Ablation) -> ablation_pb2.AblationSpec:
    if isinstance(spec, Ablation):
        spec = ablated_cells(spec)
    return ablation_pb2.AblationSpec(
        index=_activation_index(spec.index),
        value=spec.value,
        value_type=_value_type(spec),
        direction=None if spec.direction is None else map(float, spec.direction),
    )


def _inference_sub_request(request: InferenceSubRequest) -> service_pb2.InferenceSubRequest:
    gradient = request.within_layer_gradient
    if request.downstream is not None and request.trace is None:
        raise NodeError(f"{request.downstream.node} is downstream of nothing: say what to trace")
    return service_pb2.InferenceSubRequest(
        inference_spec=service_pb2.InferenceSpec(
            prompt=request.prompt,
            loss_fn_config=_loss(request.loss),
            trace_config=_trace_config(request.trace, request.downstream),
            ablation_specs=[_ablation_spec(one) for one in request.ablate],
            activation_index_for_within_layer_grad=None if gradient is None else _activation_index(gradient),
            add_bos=request.add_bos,
            backward_rule=enum_value(backward_rule_pb2.BackwardRule, request.backward_rule),
            attention_pattern_gradients=request.attention_pattern_gradients,
            baseline_prompts=request.baseline,
            only_these=_circuit(request),
        ),
        processing_specs=[_processing_spec(name, spec) for name, spec in request.results.items()],
    )


def _processing_spec(name: str, spec: ProcessingSpec) -> processing_pb2.NamedProcessingSpec:
    named = processing_pb2.NamedProcessingSpec(name=name)
    match spec:
        case MultipleTopKSpec():
            named.multiple_top_k.CopyFrom(_multiple_top_k(spec))
        case DerivedScalarsSpec():
            named.derived_scalars.CopyFrom(
                processing_pb2.DerivedScalarsSpec(
                    derived_scalar_type=enum_value(DerivedScalarType, spec.derived_scalar),
                    layer_index=spec.layer,
                    activation_index=spec.index,
                    pass_type=enum_value(node_pb2.PassType, spec.pass_type),
                    normalizer=spec.normalizer,
                    num_top_tokens=spec.n_top_tokens,
                    normalize_by_prompt_maximum=spec.normalize_by_prompt_maximum,
                )
            )
        case DerivedAttentionScalarsSpec():
            named.derived_attention_scalars.CopyFrom(
                processing_pb2.DerivedAttentionScalarsSpec(
                    derived_scalar_type=enum_value(DerivedScalarType, spec.derived_scalar),
                    layer_index=spec.layer,
                    activation_index=spec.head,
                    max_scalar=spec.max_scalar,
                    max_total_scalar_in=spec.max_total_scalar_in,
                    max_total_scalar_out=spec.max_total_scalar_out,
                )
            )
        case ScoredTokensSpec():
            named.scored_tokens.depends_on = spec.depends_on
            named.scored_tokens.token_scoring_type = enum_value(processing_pb2.TokenScoringType, spec.scoring)
            named.scored_tokens.num_tokens = spec.n_tokens
        case TokenPairAttributionSpec():
            named.token_pair_attribution.depends_on = spec.depends_on
            named.token_pair_attribution.num_tokens_attended_to = spec.n_tokens_attended_to
        case LensSpec():
            named.lens.CopyFrom(
                processing_pb2.LensSpec(
                    place=enum_value(activation_pb2.ActivationLocationType, spec.place),
                    layer_indices=spec.layers,
                    token_indices=spec.at,
                    vocab_tokens=_texts(spec.tokens),
                    vocab_token_ids=_ids(spec.tokens),
                    num_top_tokens=spec.n_top_tokens,
                )
            )
        case ActivationsSpec():
            named.activations.CopyFrom(
                processing_pb2.ActivationsSpec(
                    activation_location_type=enum_value(activation_pb2.ActivationLocationType, spec.place),
                    layer_indices=spec.layers,
                    token_indices=spec.at,
                    pass_type=enum_value(node_pb2.PassType, spec.pass_type),
                )
            )
        case ComponentTotalsSpec():
            scalars = [enum_value(DerivedScalarType, one) for one in spec.derived_scalars]
            named.component_totals.derived_scalar_types.extend(scalars)
            named.component_totals.by_token = spec.by_token
    return named


def _multiple_top_k(spec: MultipleTopKSpec) -> processing_pb2.MultipleTopKSpec:
    groups = [
        processing_pb2.DerivedScalarGroup(
            group_id=enum_value(GroupId, group),
            derived_scalar_types=[enum_value(DerivedScalarType, one) for one in derived_scalars],
        )
        for group, derived_scalars in spec.groups.items()
    ]
    return processing_pb2.MultipleTopKSpec(
        groups=groups,
        token_index=spec.token,
        top_and_bottom_k=spec.k,
        pass_type=enum_value(node_pb2.PassType, spec.pass_type),
        dimensions_to_keep_for_sum=[enum_value(activation_pb2.Dimension, one) for one in spec.keep],
        omit_sums=not spec.sums,
    )

"""From the wire's nodes, activation indices, ablations and traces to the domain's.

Nothing is checked against the model yet. What cannot be read is None.
"""

from __future__ import annotations

from transformer_debugger.v1.ablation_pb2 import AblationSpec as AblationSpecMessage
from transformer_debugger.v1.ablation_pb2 import NodeAblation as NodeAblationMessage
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage
from transformer_debugger.v1.activation_pb2 import TensorIndex
from transformer_debugger.v1.circuit_pb2 import Circuit as CircuitMessage
from transformer_debugger.v1.circuit_pb2 import CircuitNode as CircuitNodeMessage
from transformer_debugger.v1.node_pb2 import NodeIndex as NodeIndexMessage
from transformer_debugger.v1.trace_pb2 import PRE_OR_POST_ACT_POST, NodeToTrace, PreOrPostAct, TraceConfig

from tdb_server.domain.circuit_validation import circuit_node_violations, node_type_violations
from tdb_server.domain.node import NodeIndex, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import (
    AblationSpec,
    ActivationIndex,
    Circuit,
    CircuitNode,
    NodeAblation,
    Trace,
    ValueType,
)
from tdb_server.service.enum_names import (
    ATTENTION_TRACE_TYPES,
    HOOK_POINTS,
    NODE_TYPES,
    PASS_TYPES,
    VALUE_TYPES,
)
from tdb_server.service.request_reader import MessageReader

_MOST_INDICES = 16
"""No node or hook point has as many. Fewer are counted against what is needed."""


def parse_activation_index(index: MessageReader[ActivationIndexMessage]) -> ActivationIndex | None:
    """An activation index."""
    hook_point = index.member("activation_location_type", HOOK_POINTS)
    pass_type = index.member("pass_type", PASS_TYPES, PassType.FORWARD)
    if not _are_few(index):
        return None
    are_readable = [_is_readable(one) for one in index.entries("tensor_indices")]
    if hook_point is None or pass_type is None or not all(are_readable):
        return None
    indices = tuple(None if one.HasField("all") else one.index for one in index.message.tensor_indices)
    return ActivationIndex(hook_point, index.optional("layer_index"), indices, pass_type)


def parse_node_ablation(ablation: MessageReader[NodeAblationMessage]) -> NodeAblation | None:
    """A node's ablation."""
    node, message = _parse_node(ablation), ablation.message
    value_type = ablation.member("value_type", VALUE_TYPES, ValueType.NUMBER)
    if node is None or value_type is None:
        return None
    return NodeAblation(node, message.value, message.attended_to_token_only, value_type)


def parse_ablation(ablation: MessageReader[AblationSpecMessage]) -> AblationSpec | None:
    """An ablation of activations."""
    index = parse_activation_index(ablation.inner("index")) if ablation.requires("index") else None
    value_type = ablation.member("value_type", VALUE_TYPES, ValueType.NUMBER)
    if ablation.has("attended_to_token"):
        ablation.refuse("attended_to_token", "is for answers alone", Reason.FIELD_NOT_ALLOWED)
    if index is None or value_type is None:
        return None
    message = ablation.message
    return AblationSpec(index, message.value, value_type, tuple(message.direction) or None)


def parse_circuit(circuit: MessageReader[CircuitMessage], n_tokens: int | None) -> Circuit | None:
    """A circuit, checked against the model; None where it is refused."""
    request, n_violations = circuit.request, circuit.request.n_violations
    if not circuit.message.node_types:
        circuit.refuse("node_types", "at least one is required", Reason.FIELD_REQUIRED)
    node_types = circuit.members("node_types", NODE_TYPES, "node types") or []
    request.note(node_type_violations(node_types, request.info, circuit.at("node_types")))
    limit = request.limits.max_circuit_nodes
    if not circuit.at_most("nodes", limit, Reason.TOO_MANY_NODES) or request.n_violations > n_violations:
        return None
    nodes = []
    for one in circuit.entries("nodes"):
        node_type = one.member("node_type", NODE_TYPES)
        if node_type is None or not one.requires("layer_index"):
            continue
        message: CircuitNodeMessage = one.message
        token = one.optional("token_index")
        node = CircuitNode(node_type, message.layer_index, token, message.component_index)
        request.note(circuit_node_violations(node, node_types, request.info, n_tokens, one.path))
        nodes.append(node)
    return Circuit(frozenset(node_types), tuple(nodes))


def parse_trace(trace: MessageReader[NodeToTrace] | MessageReader[TraceConfig]) -> Trace | None:
    """A traced node, with the downstream nodes that stand in its message."""
    node, message, n_violations = _parse_node(trace), trace.message, trace.request.n_violations
    trace_type = None
    if message.attention_trace_type:  # whether the node may have one is checked later
        trace_type = trace.member("attention_trace_type", ATTENTION_TRACE_TYPES)
    is_post_act, downstream = False, None
    if isinstance(message, TraceConfig):
        is_post_act = message.pre_or_post_act == PRE_OR_POST_ACT_POST
        if message.pre_or_post_act not in PreOrPostAct.values():
            description = f"{message.pre_or_post_act} is not a value this server knows"
            trace.refuse("pre_or_post_act", description, Reason.UNKNOWN_ENUM_VALUE)
        if message.HasField("downstream_trace_config"):
            downstream = parse_trace(trace.inner("downstream_trace_config"))
    if node is None or trace.request.n_violations > n_violations:
        return None
    return Trace(node, trace_type, is_post_act, downstream)


def _parse_node(
    owner: MessageReader[NodeAblationMessage] | MessageReader[NodeToTrace] | MessageReader[TraceConfig],
) -> NodeIndex | None:
    """The node of a message that is about one."""
    if not owner.requires("node_index"):
        return None
    node: MessageReader[NodeIndexMessage] = owner.inner("node_index")
    node_type = node.member("node_type", NODE_TYPES)
    pass_type = node.member("pass_type", PASS_TYPES, PassType.FORWARD)
    if node_type is None or pass_type is None or not _are_few(node):
        return None
    return NodeIndex(node_type, node.optional("layer_index"), tuple(node.message.tensor_indices), pass_type)


def _are_few(owner: MessageReader[NodeIndexMessage] | MessageReader[ActivationIndexMessage]) -> bool:
    """Whether the list of indices is short enough to be looked at."""
    n_indices = len(owner.message.tensor_indices)
    if n_indices > _MOST_INDICES:
        description = f"{n_indices} indices given; nothing has {_MOST_INDICES} axes"
        owner.refuse("tensor_indices", description, Reason.WRONG_NUMBER_OF_INDICES)
    return n_indices <= _MOST_INDICES


def _is_readable(index: MessageReader[TensorIndex]) -> bool:
    if index.has("index") or index.optional("all"):
        return True
    index.refuse("", "give an index, or all: true", Reason.FIELD_REQUIRED)
    return False

"""From the wire's nodes, activation indices, ablations and traces to the domain's."""

from __future__ import annotations

from collections.abc import Sequence

from transformer_debugger.v1.ablation_pb2 import AblationSpec as AblationSpecMessage
from transformer_debugger.v1.ablation_pb2 import NodeAblation as NodeAblationMessage
from transformer_debugger.v1.activation_pb2 import ActivationIndex as ActivationIndexMessage
from transformer_debugger.v1.activation_pb2 import TensorIndex
from transformer_debugger.v1.node_pb2 import NodeIndex as NodeIndexMessage
from transformer_debugger.v1.trace_pb2 import (
    PRE_OR_POST_ACT_POST,
    NodeToTrace,
    PreOrPostAct,
    TraceConfig,
)

from tdb_server.domain.node import NodeIndex, PassType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import AblationSpec, ActivationIndex, AttentionTraceType, NodeAblation, Trace
from tdb_server.service.enum_names import ATTENTION_TRACE_TYPES, NODE_TYPES, PASS_TYPES, PLACES
from tdb_server.service.request_reader import RequestReader

_MOST_INDICES = 16
"""No node or hook point has as many. Fewer are counted against what is needed."""


def parse_node(reader: RequestReader, message: NodeIndexMessage, path: str) -> NodeIndex | None:
    """A node, not yet checked against the model; None where its type or pass cannot be read."""
    node_type = reader.member(message.node_type, NODE_TYPES, f"{path}.node_type")
    pass_type = reader.member(message.pass_type, PASS_TYPES, f"{path}.pass_type", PassType.FORWARD)
    if node_type is None or pass_type is None:
        return None
    if not _are_few(reader, message.tensor_indices, f"{path}.tensor_indices"):
        return None
    layer_index = message.layer_index if message.HasField("layer_index") else None
    return NodeIndex(node_type, layer_index, tuple(message.tensor_indices), pass_type)


def parse_activation_index(
    reader: RequestReader, message: ActivationIndexMessage, path: str
) -> ActivationIndex | None:
    """An activation index, not yet checked against the model; None where it cannot be read."""
    hook_point = reader.member(message.activation_location_type, PLACES, f"{path}.activation_location_type")
    pass_type = reader.member(message.pass_type, PASS_TYPES, f"{path}.pass_type", PassType.FORWARD)
    if not _are_few(reader, message.tensor_indices, f"{path}.tensor_indices"):
        return None
    are_readable = [
        _is_readable(reader, one, f"{path}.tensor_indices[{i}]")
        for i, one in enumerate(message.tensor_indices)
    ]
    if hook_point is None or pass_type is None or not all(are_readable):
        return None
    indices = tuple(None if one.HasField("all") else one.index for one in message.tensor_indices)
    layer_index = message.layer_index if message.HasField("layer_index") else None
    return ActivationIndex(hook_point, layer_index, indices, pass_type)


def parse_node_ablation(
    reader: RequestReader, message: NodeAblationMessage, path: str
) -> NodeAblation | None:
    """A node's ablation, not yet checked; None where the node cannot be read."""
    node = _required_node(reader, message, path)
    return None if node is None else NodeAblation(node, message.value, message.attended_to_token_only)


def parse_ablation(reader: RequestReader, message: AblationSpecMessage, path: str) -> AblationSpec | None:
    """An ablation of activations, not yet checked; None where its index cannot be read."""
    if not message.HasField("index"):
        reader.refuse(f"{path}.index", "is required", Reason.FIELD_REQUIRED)
        return None
    index = parse_activation_index(reader, message.index, f"{path}.index")
    return None if index is None else AblationSpec(index, message.value)


def parse_node_to_trace(reader: RequestReader, message: NodeToTrace, path: str) -> Trace | None:
    """A debug request's traced node, without its downstream node; not yet checked. None if unreadable."""
    node = _required_node(reader, message, path)
    is_readable, trace_type = _trace_type(reader, message, path)
    return Trace(node, trace_type) if node is not None and is_readable else None


def parse_trace(reader: RequestReader, message: TraceConfig, path: str) -> Trace | None:
    """A trace with its downstream nodes, not yet checked; None where one cannot be read."""
    node = _required_node(reader, message, path)
    is_readable, trace_type = _trace_type(reader, message, path)
    if message.pre_or_post_act not in PreOrPostAct.values():
        reader.refuse(
            f"{path}.pre_or_post_act",
            f"{message.pre_or_post_act} is not a value this server knows",
            Reason.UNKNOWN_ENUM_VALUE,
        )
        is_readable = False
    downstream = None
    if message.HasField("downstream_trace_config"):
        downstream = parse_trace(reader, message.downstream_trace_config, f"{path}.downstream_trace_config")
        is_readable = is_readable and downstream is not None
    if node is None or not is_readable:
        return None
    return Trace(node, trace_type, message.pre_or_post_act == PRE_OR_POST_ACT_POST, downstream)


def _required_node(
    reader: RequestReader, message: NodeAblationMessage | NodeToTrace | TraceConfig, path: str
) -> NodeIndex | None:
    if not message.HasField("node_index"):
        reader.refuse(f"{path}.node_index", "is required", Reason.FIELD_REQUIRED)
        return None
    return parse_node(reader, message.node_index, f"{path}.node_index")


def _trace_type(
    reader: RequestReader, message: NodeToTrace | TraceConfig, path: str
) -> tuple[bool, AttentionTraceType | None]:
    """Whether the trace type can be read, and what it is; whether the node may have one is checked later."""
    if message.attention_trace_type == 0:
        return True, None
    found = reader.member(message.attention_trace_type, ATTENTION_TRACE_TYPES, f"{path}.attention_trace_type")
    return found is not None, found


def _are_few(reader: RequestReader, indices: Sequence[object], path: str) -> bool:
    """Whether a list of indices is short enough to be looked at."""
    if len(indices) <= _MOST_INDICES:
        return True
    description = f"{len(indices)} indices given; nothing has {_MOST_INDICES} axes"
    reader.refuse(path, description, Reason.WRONG_NUMBER_OF_INDICES)
    return False


def _is_readable(reader: RequestReader, message: TensorIndex, path: str) -> bool:
    if message.HasField("index") or (message.HasField("all") and message.all):
        return True
    reader.refuse(path, "give an index, or all: true", Reason.FIELD_REQUIRED)
    return False

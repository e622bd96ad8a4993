"""Checks of a circuit: types of nodes that can be kept alone, and nodes of these types that there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tdb_server.domain.axes import autoencoders_of_hook_point
from tdb_server.domain.hook_point import NODE_HOOK_POINTS
from tdb_server.domain.index_validation import layer_violations, presence_violations, range_violations
from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeType
from tdb_server.domain.reason import Reason
from tdb_server.domain.requests import CircuitNode
from tdb_server.errors import FieldViolation


def node_type_violations(
    node_types: Sequence[NodeType], info: ModelInfo, path: str
) -> Iterator[FieldViolation]:
    """Types whose nodes cannot be kept alone, and two types that mean the latents of one dictionary."""
    first_named: dict[Site, NodeType] = {}
    for i, one in enumerate(node_types):
        if one.is_latent:
            place, hook_point = f"{path}[{i}]", NODE_HOOK_POINTS[one]
            yield from presence_violations(hook_point, None, info, place, place)
            for dictionary in autoencoders_of_hook_point(hook_point, info):
                earlier = first_named.setdefault(dictionary.site, one)
                if earlier is not one:
                    description = f"means the same latents as {earlier.value}; name them once"
                    yield FieldViolation(place, description, Reason.FIELD_NOT_ALLOWED)
        elif one not in (NodeType.WHOLE_HEAD, NodeType.WHOLE_MLP, NodeType.MLP_NEURON):
            description = (
                f"circuits are made of whole heads, whole MLPs, neurons and latents, not {one.value}s"
            )
            yield FieldViolation(f"{path}[{i}]", description, Reason.NODE_NOT_ABLATABLE)


def circuit_node_violations(
    node: CircuitNode, node_types: Sequence[NodeType], info: ModelInfo, n_tokens: int | None, path: str
) -> Iterator[FieldViolation]:
    """What keeps a node from being one of the circuit. Its types must be sound."""
    if node.node_type not in node_types:
        description = f"is a {node.node_type.value}, none of the types of node that the circuit is made of"
        yield FieldViolation(f"{path}.node_type", description, Reason.FIELD_NOT_ALLOWED)
        return
    layer_path = f"{path}.layer_index"
    wrong_layer = list(layer_violations(node.layer_index, True, info, layer_path))
    yield from wrong_layer
    n_components = {
        NodeType.WHOLE_HEAD: info.n_heads,
        NodeType.WHOLE_MLP: 1,
        NodeType.MLP_NEURON: info.n_neurons,
    }.get(node.node_type)
    if n_components is None:
        hook_point = NODE_HOOK_POINTS[node.node_type]
        n_components = autoencoders_of_hook_point(hook_point, info)[0].n_latents
        if not wrong_layer:
            yield from presence_violations(
                hook_point, node.layer_index, info, f"{path}.node_type", layer_path
            )
    if node.token_index is not None:
        yield from range_violations(node.token_index, n_tokens, "token", f"{path}.token_index")
    yield from range_violations(node.component_index, n_components, "component", f"{path}.component_index")

"""What a call lists: the nodes that any of its sub-requests chose under a name, united."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeIndex, Nodes, NodeType
from tdb_server.engine.derive import Derived
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_groups import rankings_of, ranks_only_logits
from tdb_server.engine.top_nodes import BestNodes
from tdb_server.engine.transfers import Array


@dataclass(frozen=True)
class NodeTable:
    """The nodes that a call lists under a name.

    Attributes:
        nodes: in first-seen order.
        by_type: of each node type, where its nodes stand in `nodes` [m], their layers, -1 for none [m], and
            their indices [m, n_axes].
    """

    nodes: Nodes
    by_type: dict[tuple[NodeType, int], tuple[Array, Array, Array]]


def node_table(nodes: Sequence[NodeIndex]) -> NodeTable:
    """Arranges nodes by type, and by how many indices they have."""
    places: dict[tuple[NodeType, int], list[int]] = {}
    for place, node in enumerate(nodes):
        places.setdefault((node.node_type, len(node.tensor_indices)), []).append(place)
    by_type = {
        key: (
            np.array(own),
            np.array([-1 if (at := nodes[one].layer_index) is None else at for one in own]),
            np.array([nodes[one].tensor_indices for one in own]),
        )
        for key, own in places.items()
    }
    return NodeTable(Nodes(nodes), by_type)


def union_of_nodes(
    plan: Plan,
    derived: Sequence[Derived],
    call_index: int,
    *,
    only_logits: bool,
    check_cancelled: Callable[[], None],
) -> dict[str, NodeTable]:
    """The nodes that any sub-request of a call chose under each name, in first-seen order.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between rows.
    """
    chosen: dict[str, dict[NodeIndex, None]] = {}
    for row_index in plan.rows_of[call_index]:
        check_cancelled()
        group_index = plan.group_of[row_index]
        best = derived[group_index].best
        row_in_group = row_index - plan.groups[group_index].start
        for name, spec in plan.rows[row_index].top_k_specs.items():
            if ranks_only_logits(spec) == only_logits:
                own = chosen.setdefault(name, {})
                for group, scalars in spec.groups:
                    for scalar in scalars:
                        for ranking in rankings_of(name, spec, group, scalar):
                            k = spec.top_and_bottom_k
                            own |= dict.fromkeys(_nodes(scalar, best[ranking], row_in_group, k))
    return {name: node_table(list(own)) for name, own in chosen.items()}


def _nodes(scalar: DerivedScalar, best: Sequence[BestNodes], row: int, k: int) -> Iterator[NodeIndex]:
    node_type = scalar.declared.node_type
    for layer, *indices in best[row].first(k).tolist():
        yield NodeIndex(node_type, None if layer < 0 else layer, tuple(indices))

from __future__ import annotations

from tdb_server.domain.node import NodeIndex, Nodes, NodeType, PassType

HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 0), PassType.BACKWARD)
EMBEDDING = NodeIndex(NodeType.LAYER, None, (3, 0))


def test_nodes_are_a_tuple_of_them() -> None:
    nodes = Nodes([HEAD, EMBEDDING])
    assert nodes == (HEAD, EMBEDDING)
    assert hash(nodes) == hash((HEAD, EMBEDDING))
    assert len({nodes, Nodes([HEAD, EMBEDDING]), Nodes([EMBEDDING])}) == 2

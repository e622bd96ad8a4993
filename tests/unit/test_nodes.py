from __future__ import annotations

import pickle

from tdb_server.domain.node import NodeIndex, Nodes, NodeType, PassType

HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 0), PassType.BACKWARD)
EMBEDDING = NodeIndex(NodeType.LAYER, None, (3, 0))


def test_nodes_are_a_tuple_of_them() -> None:
    nodes = Nodes([HEAD, EMBEDDING])
    assert nodes == (HEAD, EMBEDDING)
    assert hash(nodes) == hash((HEAD, EMBEDDING))
    assert len({nodes, Nodes([HEAD, EMBEDDING]), Nodes([EMBEDDING])}) == 2


def test_what_is_read_again_is_the_same() -> None:
    pickled = pickle.dumps(Nodes([HEAD, EMBEDDING]))
    read = pickle.loads(pickled)
    assert isinstance(read, Nodes)
    assert read == (HEAD, EMBEDDING)
    assert pickle.loads(pickled) is read
    assert pickle.loads(pickle.dumps(read)) is read
    assert pickle.loads(pickle.dumps(Nodes())) == ()

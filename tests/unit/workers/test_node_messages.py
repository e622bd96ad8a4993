from __future__ import annotations

import pickle

from tdb_server.domain.node import NodeIndex, Nodes, NodeType, PassType
from tdb_server.workers.messages import CallProgress

HEAD = NodeIndex(NodeType.ATTENTION_HEAD, 1, (4, 2, 0), PassType.BACKWARD)
EMBEDDING = NodeIndex(NodeType.LAYER, None, (3, 0))


def sent(nodes: Nodes) -> bytes:
    return pickle.dumps(CallProgress("a call", nodes), protocol=5)  # type: ignore[arg-type]


def test_what_is_read_again_is_the_same() -> None:
    pickled = sent(Nodes([HEAD, EMBEDDING]))
    read = pickle.loads(pickled).event
    assert isinstance(read, Nodes)
    assert read == (HEAD, EMBEDDING)
    assert pickle.loads(pickled).event is read
    assert pickle.loads(sent(read)).event is read
    assert pickle.loads(sent(Nodes())).event == ()

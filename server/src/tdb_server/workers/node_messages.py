"""How nodes cross the border: as bytes that are made once and read once.

Most results of a call are about the same hundreds of nodes. They are spelled as bytes for the first of them,
and whoever reads these bytes again gets the nodes that were made of them the first time. Whatever pickles
nodes where this module is imported does so, Ray too.
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable
from functools import lru_cache

from tdb_server.domain.node import NodeIndex, Nodes


def _reduced(nodes: Nodes) -> tuple[Callable[[bytes], Nodes], tuple[bytes]]:
    known = vars(nodes)
    if "_as_bytes" not in known:
        fields = [(one.node_type, one.layer_index, one.tensor_indices, one.pass_type) for one in nodes]
        known["_as_bytes"] = pickle.dumps(fields, protocol=5)
    return _nodes, (known["_as_bytes"],)


@lru_cache(maxsize=16)  # of a large call 2 MB each
def _nodes(pickled: bytes) -> Nodes:
    return Nodes(NodeIndex(*fields) for fields in pickle.loads(pickled))


copyreg.pickle(Nodes, _reduced)

"""Everything that the page can ask, by the last part of its address: `/v1/workbench/NAME`."""

from __future__ import annotations

from collections.abc import Mapping

from tdb_client.workbench.attention import ATTENTION
from tdb_client.workbench.circuits import CIRCUIT
from tdb_client.workbench.debugging import DEBUG
from tdb_client.workbench.edge_graph import EDGES
from tdb_client.workbench.layers import LAYERS
from tdb_client.workbench.lens import LENS
from tdb_client.workbench.model_and_tokens import MODEL, TOKENS
from tdb_client.workbench.node import NODE
from tdb_client.workbench.route import Route

ROUTES: Mapping[str, Route] = {
    "model": MODEL,
    "tokens": TOKENS,
    "debug": DEBUG,
    "attention": ATTENTION,
    "layers": LAYERS,
    "lens": LENS,
    "edges": EDGES,
    "circuit": CIRCUIT,
    "node": NODE,
}

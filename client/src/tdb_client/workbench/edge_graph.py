"""Edges between components, from the embedding to the logits."""

from __future__ import annotations

from typing import get_args

from tdb_client.async_client import AsyncClient
from tdb_client.edges import EdgeMethod, EdgesSubRequest
from tdb_client.report.rounding import finite, rounded
from tdb_client.results import EdgeReader, EdgeWriter
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.questions import question_of, refuse_changes
from tdb_client.workbench.route import Line, Lines, Route

MOST_EDGES = 200
"""Edges that are listed where nothing else is said: as many as a graph can show."""


def _read(body: object) -> EdgesSubRequest:
    reader = BodyReader(body, ("question", "topK", "method", "steps"))
    asked = question_of(reader).asked
    refuse_changes(reader, asked, "edges are those of the model as it is")
    read = EdgesSubRequest(
        asked.prompt,
        asked.objective,
        asked.baseline,
        reader.choice("method", get_args(EdgeMethod), "eap"),
        reader.whole("steps"),
        reader.whole("topK", MOST_EDGES) or 0,
        add_bos=asked.add_bos,
    )
    if not asked.baseline:
        reader.fault(
            "baseline", "edges need a prompt to compare with, of as many tokens", "BASELINE_REQUIRED"
        )
    reader.check()
    return read


async def _edges(client: AsyncClient, asked: EdgesSubRequest) -> Lines:
    (found,) = await client.edges_many([asked])
    edges = list(found)
    nodes: dict[str, Line] = {}
    for edge in edges:
        for end in (edge.writer, edge.reader):
            nodes.setdefault(_spelling(end), _node(end))
    yield {
        "event": "edges",
        "objective": found.objective,
        "value": finite(found.loss),
        "method": asked.method,
        "nodes": list(nodes.values()),
        "edges": [
            {
                "from": _spelling(edge.writer),
                "to": _spelling(edge.reader),
                "reads": edge.reader.type.removeprefix("head_"),
                "score": score,
            }
            for edge, score in zip(edges, rounded(found.result.edge_scores), strict=True)
        ],
    }


def _spelling(end: EdgeWriter | EdgeReader) -> str:
    """As circuits spell it: `L9 whole head 6`, `L5 mlp`; `embedding`, `logits`; `L9 key head 2`."""
    if end.layer is None:
        return end.type
    if end.head is None:
        return f"L{end.layer} mlp"
    shared = isinstance(end, EdgeReader) and end.type in ("head_key", "head_value")
    kind = f"{end.type.removeprefix('head_')} head" if shared else "whole head"
    return f"L{end.layer} {kind} {end.head}"


def _node(end: EdgeWriter | EdgeReader) -> Line:
    kind = "head" if end.type == "head_query" else end.type
    return {"spelling": _spelling(end), "kind": kind, "layer": end.layer, "head": end.head}


EDGES = Route(_read, _edges)

"""What `--csv` prints: the node table, a row per node, in the columns of NodeTable.to_frame.

With ablations the four scalars are given twice: without, and with them under `ablated_...`.
Lists of tokens are JSON, best first. Numbers that are not finite are `nan`, `inf` and `-inf`. Where a latent
has a label there is a column `label`, whose texts are JSON too: strangers wrote them, and a spreadsheet would
take a text that begins with `=` for a formula.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import TextIO

from tdb_client.debug_result import DebugResult
from tdb_client.node_table import NodeScalar
from tdb_client.results import TopTokens

SCALARS: tuple[NodeScalar, ...] = ("write_norm", "act_times_grad", "direct_effect", "activation")
PREFIXES = ("", "ablated_")


def print_nodes(results: Sequence[DebugResult], file: TextIO) -> None:
    """Writes the table of one result, or of two with the same nodes: without and with ablations."""
    writer = csv.writer(file, lineterminator="\n")
    last = results[-1].nodes
    lists = {
        "upvoted_tokens": last.upvoted_tokens,
        "input_tokens": last.input_tokens,
        "query_tokens": last.query_tokens,
        "key_tokens": last.key_tokens,
    }
    scalars = {
        f"{prefix}{name}": result.nodes.scalar(name)
        for prefix, result in zip(PREFIXES, results, strict=False)
        for name in SCALARS
    }
    labels = ["label"] if any(last.labels) else []
    columns = ["node", "words", "type", "layer", "index", "token", "attended_to", *scalars, *lists, *labels]
    writer.writerow(columns)
    for row, node in enumerate(last.nodes):
        writer.writerow(
            [
                str(node),
                last.words[row],
                node.kind,
                node.layer,
                node.index,
                node.token,
                node.attended_to,
                *(f"{values[row]:.9g}" for values in scalars.values()),
                *(_best(tokens[row]) for tokens in lists.values()),
                *(
                    json.dumps(last.labels[row], ensure_ascii=False) if last.labels[row] else ""
                    for _ in labels
                ),
            ]
        )


def _best(scored: TopTokens | None) -> str:
    return json.dumps([] if scored is None else scored.top.tokens, ensure_ascii=False)

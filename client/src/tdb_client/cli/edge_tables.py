"""What `tdb edges` prints."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tdb_client.edges import Edges
from tdb_client.number_text import number


def edge_page(edges: Edges, n_rows: int) -> Group:
    """The objective, and the strongest edges.

    Args:
        n_rows: how many of the listed edges; 0 for all.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("from")
    table.add_column("to")
    table.add_column("score", justify="right")
    shown = list(edges)[: n_rows or None]
    for one in shown:
        score = f"{one.score:+.4f}" if abs(one.score) >= 1e-3 else number(one.score, sign=True)
        table.add_row(str(one.writer), str(one.reader), score)
    line = Text.assemble(edges.objective, " = ", (number(edges.loss), "bold"))
    return Group(line, Text(), table, Text(f"{len(shown)} of {len(edges)} listed edges", "dim"))

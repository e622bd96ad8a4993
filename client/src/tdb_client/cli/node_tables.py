"""The node table of one result, and of two side by side."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from tdb_client.cli.numbers import best_tokens, difference, effect, plain, tokens_of
from tdb_client.debug_result import DebugResult
from tdb_client.node_table import NodeScalar, NodeTable
from tdb_client.number_text import number

TITLES: dict[NodeScalar, str] = {
    "write_norm": "write\nnorm",
    "act_times_grad": "act ×\ngrad",
    "direct_effect": "direct\neffect",
    "activation": "acti-\nvation",
}
EFFECTS = ("act_times_grad", "direct_effect")
DIFFERENCE = "Δ "
"""Stands in front of headings where numbers are of the difference from a baseline."""
WIDE = 120
N_TOKENS = 5
LABEL_WIDTH = 28


def node_table(result: DebugResult, by: NodeScalar, n_rows: int, width: int) -> Table:
    """The strongest nodes: four scalars, the tokens they upvote and, where there is room, those they read.

    Args:
        result: with all nodes; where it has a baseline, headings say what is of differences from it.
        by: the scalar to sort by.
        n_rows: how many to show; 0 for all.
        width: columns of the terminal.
    """
    table, nodes = _table(width), result.nodes
    for name, title in TITLES.items():
        sign = DIFFERENCE if result.baselines and name in EFFECTS else ""
        table.add_column(Text(sign + title), justify="right", no_wrap=True)
    is_wide = width >= WIDE
    table.add_column("upvotes", no_wrap=True, ratio=3)
    if is_wide:
        table.add_column("excited by", no_wrap=True, ratio=2)
    rows = nodes.strongest(by)[: n_rows or None]
    for row in rows:
        scalars = [
            effect(nodes.scalar(name)[row]) if name in EFFECTS else plain(nodes.scalar(name)[row])
            for name in TITLES
        ]
        tokens = [best_tokens(nodes.upvoted_tokens[row], N_TOKENS)]
        if is_wide:
            tokens.append(_read_tokens(nodes, row))
        table.add_row(*_name(nodes, row), *scalars, *tokens)
    table.caption = _caption(len(rows), result, by)
    return table


def comparison_table(
    plain_result: DebugResult, ablated_result: DebugResult, by: NodeScalar, n_rows: int, width: int
) -> Table:
    """Nodes whose scalar changes most, without and with ablation. Both results have the same nodes."""
    table, plain_nodes, ablated = _table(width), plain_result.nodes, ablated_result.nodes
    other: NodeScalar = "act_times_grad" if by == "direct_effect" else "direct_effect"
    names: tuple[NodeScalar, ...] = (by, other) if width >= WIDE else (by,)
    for name in names:
        sign = DIFFERENCE if plain_result.baselines and name in EFFECTS else ""
        for column in (f"{sign}{TITLES[name]}\nplain", "\n\nablated", "\n\ndifference"):
            table.add_column(Text(column), justify="right", no_wrap=True)
    table.add_column("upvotes", no_wrap=True, ratio=1)
    change = ablated.scalar(by) - plain_nodes.scalar(by)
    rows = np.argsort(-np.abs(change), kind="stable")[: n_rows or None]
    for row in rows:
        cells = []
        for name in names:
            before, after = float(plain_nodes.scalar(name)[row]), float(ablated.scalar(name)[row])
            cells += [plain(before), plain(after), difference(after - before)]
        table.add_row(*_name(plain_nodes, row), *cells, best_tokens(ablated.upvoted_tokens[row], N_TOKENS))
    table.caption = _caption(len(rows), plain_result, by, "difference in ")
    return table


def _table(width: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        expand=True,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    table.add_column("node", no_wrap=True, max_width=34 if width < WIDE else None)
    table.add_column("@", no_wrap=True, style="dim")
    return table


def _name(nodes: NodeTable, row: int) -> tuple[Text, Text]:
    name, label = Text(nodes.words[row]), Text(nodes.labels[row] or "", "dim italic")
    if label:
        label.truncate(LABEL_WIDTH, overflow="ellipsis")
        name = Text("\n").join([name, label])
    return name, tokens_of(nodes.nodes[row])


def _read_tokens(nodes: NodeTable, row: int) -> Text:
    """What excites a node: heads through query and key, attention latents by the tokens attended to."""
    attended_to = nodes.attended_to[row]
    if attended_to is not None:
        pairs = zip(attended_to.token_indices, attended_to.attributions, strict=True)
        return Text(" ".join(f"@ {token} {number(value, sign=True)}" for token, value in pairs))
    if nodes.query_tokens[row] is None and nodes.key_tokens[row] is None:
        return best_tokens(nodes.input_tokens[row], N_TOKENS)
    query, key = best_tokens(nodes.query_tokens[row], 2), best_tokens(nodes.key_tokens[row], 2)
    return Text.assemble(("q ", "dim"), query, ("  k ", "dim"), key)


def _caption(n_shown: int, result: DebugResult, by: NodeScalar, what: str = "") -> Text:
    n_nodes = len(result.nodes)
    more = "" if n_shown == n_nodes else "; --rows 0 shows all"
    sign = f"; {DIFFERENCE.strip()}: of the difference from the baseline" if result.baselines else ""
    return Text(f"{n_shown} of {n_nodes} nodes, by {what}{by.replace('_', ' ')}{more}{sign}", "dim")

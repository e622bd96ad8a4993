"""The table of components of one result, and of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from tdb_client.cli.node_tables import EFFECTS, TITLES
from tdb_client.cli.numbers import difference, effect, plain
from tdb_client.component_table import ComponentScalar, ComponentTable

_SCALARS: tuple[ComponentScalar, ...] = ("write_norm", "act_times_grad", "direct_effect")


def component_table(tables: Sequence[ComponentTable], by: ComponentScalar, n_rows: int) -> Table:
    """The strongest components, or with a second table those whose scalar differs most.

    Args:
        tables: of one result, or of one without and one with ablations.
        by: the scalar to sort by.
        n_rows: how many to show; 0 for all.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("component", no_wrap=True)
    first, *others = tables
    if others:
        titles = [f"{TITLES[by]}\nplain", "\n\nablated", "\n\ndifference"]
        changes = others[0].scalar(by) - first.scalar(by)
        order = np.argsort(-np.abs(changes), kind="stable").tolist()
    else:
        titles = [TITLES[one] for one in _SCALARS]
        order = first.strongest(by).tolist()
    rows = order[: n_rows or None]
    for title in titles:
        table.add_column(Text(title), justify="right", no_wrap=True)
    for row in rows:
        if others:
            cells = [plain(first.scalar(by)[row]), plain(others[0].scalar(by)[row]), difference(changes[row])]
        else:
            numbers = [(one, first.scalar(one)[row]) for one in _SCALARS]
            cells = [effect(number) if one in EFFECTS else plain(number) for one, number in numbers]
        table.add_row(first.components[row], *cells)
    ranked = f"by {by} over all tokens"
    table.caption = f"{len(rows)} of {len(first)} components, {ranked}"
    return table

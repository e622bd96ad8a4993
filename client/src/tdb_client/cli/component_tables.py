"""The table of components of one result, and of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from tdb_client.cli.node_tables import DIFFERENCE, EFFECTS, TITLES
from tdb_client.cli.numbers import difference, effect, plain
from tdb_client.component_table import ComponentScalar
from tdb_client.debug_result import DebugResult

_SCALARS: tuple[ComponentScalar, ...] = ("write_norm", "act_times_grad", "direct_effect")


def component_table(results: Sequence[DebugResult], by: ComponentScalar, n_rows: int) -> Table:
    """The strongest components, or with a second table those whose scalar differs most.

    Args:
        results: one, or one without and one with ablations; where they have a baseline, headings say what is
            of differences from it.
        by: the scalar to sort by.
        n_rows: how many to show; 0 for all.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("component", no_wrap=True)
    first, *others = (one.components for one in results)
    signs = {one: DIFFERENCE if results[0].baselines and one in EFFECTS else "" for one in _SCALARS}
    if others:
        titles = [f"{signs[by]}{TITLES[by]}\nplain", "\n\nablated", "\n\ndifference"]
        changes = others[0].scalar(by) - first.scalar(by)
        order = np.argsort(-np.abs(changes), kind="stable").tolist()
    else:
        titles = [signs[one] + TITLES[one] for one in _SCALARS]
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
    note = f"; {DIFFERENCE.strip()}: of the difference from the baseline" if results[0].baselines else ""
    sorted_by = f"{'difference in ' if others else ''}{by.replace('_', ' ')}"
    table.caption = f"{len(rows)} of {len(first)} components, by {sorted_by} over all tokens{note}"
    return table

"""What `tdb doctor` prints: a line per check, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tdb_client.diagnosis import Check, Outcome

STYLES: dict[Outcome, str] = {"ok": "green4", "warning": "dark_orange3", "problem": "bold red3"}


def check_line(check: Check) -> Table:
    """The outcome, what was checked and what was found; below it the advice."""
    table = Table.grid(padding=(0, 2))
    for width in (7, 10):
        table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    table.add_row(Text(check.outcome, STYLES[check.outcome]), Text(check.name), Text(check.finding))
    if check.advice:
        table.add_row("", "", Text(f"→ {check.advice}", "bold" if check.outcome == "problem" else ""))
    return table


def conclusion(checks: Sequence[Check]) -> Text:
    """Whether the server can be used."""
    outcomes = [one.outcome for one in checks]
    if "problem" in outcomes:
        return Text("\nThis server cannot be used as things are.")
    n_warnings = outcomes.count("warning")
    if n_warnings:
        return Text(f"\nThe server can be used, with {n_warnings} warning{'s' if n_warnings > 1 else ''}.")
    return Text("\nAll is well.")

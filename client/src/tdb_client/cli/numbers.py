"""Numbers and tokens as cells of a terminal's tables."""

from __future__ import annotations

from rich.text import Text

from tdb_client.nodes import Node
from tdb_client.number_text import number
from tdb_client.results import TopTokens
from tdb_client.token_text import quoted

RAISES, LOWERS = "dodger_blue1", "dark_orange"
"""Colours of what raises and what lowers the objective. Most colour-blind eyes can tell them apart, too."""


def plain(value: float) -> Text:
    """A number whose sign says nothing about the objective."""
    return Text(number(value))


def effect(value: float) -> Text:
    """A number that raises or lowers the objective."""
    style = RAISES if value > 0 else LOWERS if value < 0 else ""
    return Text(number(value), style)


def difference(value: float) -> Text:
    """How much a number changed, sign always shown."""
    style = RAISES if value > 0 else LOWERS if value < 0 else ""
    return Text(number(value, sign=True), style)


def tokens_of(node: Node) -> Text:
    """A node's token by its number, or both of a pair: `13 → 2`."""
    return Text(str(node.token) if node.attended_to is None else f"{node.token} → {node.attended_to}")


def best_tokens(scored: TopTokens | None, n_tokens: int) -> Text:
    """The best tokens of a list, quoted, side by side."""
    return Text(" ".join(quoted(token) for token in ([] if scored is None else scored.top.tokens[:n_tokens])))

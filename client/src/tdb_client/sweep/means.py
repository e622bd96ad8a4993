"""Means and standard errors over the lines of a sweep.

A line's answer lists the nodes that matter most in its prompt. What it does not list counts as 0 in that
line, so that all means are over all lines; `lines` says in how many something was listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from tdb_client.node_table import NodeScalar
from tdb_client.nodes import Node
from tdb_client.sweep.journal import Record

By = Literal["component", "node"]
Columns = dict[str, list[object]]
"""A table: columns of one length by name."""

SCALARS: tuple[NodeScalar, ...] = ("direct_effect", "act_times_grad", "write_norm", "activation")


@dataclass(slots=True)
class Spread:
    """Mean and squared differences from it, of values that come one by one (Welford)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Takes a value."""
        self.n += 1
        change = value - self.mean
        self.mean += change / self.n
        self.squares += change * (value - self.mean)

    def with_zeros(self, n_lines: int) -> Spread:
        """The same with zeros for all other lines."""
        share = self.n / n_lines
        between = self.mean * self.mean * self.n * (1 - share)
        return Spread(n_lines, self.mean * share, self.squares + between)

    @property
    def standard_error(self) -> float:
        """Of the mean: the standard deviation of the sample over the root of its size; nan for one value."""
        return math.sqrt(self.squares / (self.n - 1) / self.n) if self.n > 1 else math.nan


@dataclass(slots=True)
class _Row:
    node: Node
    spreads: list[Spread] = field(default_factory=lambda: [Spread() for _ in SCALARS])


def table_of_nodes(records: Iterable[Record], by: By) -> Columns:
    """A row per component, or per node, the largest mean direct effect first.

    Args:
        records: of the lines, with their nodes and each scalar of them.
        by: `component` for the sums over a line's tokens, `node` for token by token.
    """
    rows: dict[Node, _Row] = {}
    n_lines = 0
    for record in records:
        n_lines += 1
        for node, values in _values(record, by).items():
            row = rows.setdefault(node, _Row(node))
            for spread, value in zip(row.spreads, values, strict=True):
                spread.add(value)
    whole = [
        (row.node, row.spreads[0].n, [one.with_zeros(n_lines) for one in row.spreads])
        for row in rows.values()
    ]
    whole.sort(key=lambda row: (-_size(row[2][0].mean), str(row[0])))
    columns: Columns = {by: [one.component if by == "component" else str(one) for one, _, _ in whole]}
    columns |= {
        "type": [one.kind for one, _, _ in whole],
        "layer": [one.layer for one, _, _ in whole],
        "index": [one.index for one, _, _ in whole],
    }
    if by == "node":
        columns |= {
            "token": [one.token for one, _, _ in whole],
            "attended_to": [one.attended_to for one, _, _ in whole],
        }
    columns["lines"] = [n for _, n, _ in whole]
    return columns | _spreads({name: [row[2][i] for row in whole] for i, name in enumerate(SCALARS)})


def table_of_ablations(records: Iterable[Record], nodes: Sequence[str]) -> Columns:
    """A row per node that was ablated by itself, in the order asked for.

    Args:
        records: of the lines, with the objective without ablation and with each node ablated.
        nodes: the nodes as they were spelled.
    """
    plain = Spread()
    ablated = [Spread() for _ in nodes]
    changes = [Spread() for _ in nodes]
    for record in records:
        plain.add(record["objective"])
        for i, value in enumerate(record["ablated"]):
            ablated[i].add(value)
            changes[i].add(value - record["objective"])
    columns: Columns = {"node": list(nodes), "lines": [plain.n for _ in nodes]}
    return columns | _spreads({"objective": [plain for _ in nodes], "ablated": ablated, "change": changes})


def _size(mean: float) -> float:
    return math.inf if math.isnan(mean) else abs(mean)


def _spreads(spreads: Mapping[str, Sequence[Spread]]) -> Columns:
    columns: Columns = {}
    for name, several in spreads.items():
        columns[name] = [one.mean for one in several]
        columns[f"{name}_standard_error"] = [one.standard_error for one in several]
    return columns


def _values(record: Record, by: By) -> dict[Node, list[float]]:
    """The scalars of a line's nodes, or their sums over its tokens by component."""
    found: dict[Node, list[float]] = {}
    for spelled, *values in zip(record["nodes"], *(record[name] for name in SCALARS), strict=True):
        node = _node(spelled, by)
        before = found.get(node)
        found[node] = values if before is None else [a + b for a, b in zip(before, values, strict=True)]
    return found


@lru_cache(maxsize=100_000)
def _node(spelled: str, by: By) -> Node:
    node = Node.parse(spelled)
    return node if by == "node" else replace(node, token=0, attended_to=None)

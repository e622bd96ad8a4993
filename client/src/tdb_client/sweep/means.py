"""Means and standard errors over the lines of a sweep.

Heads, MLPs, the embedding and layers' latents are summed by the server, over everything they do in a prompt.
Of neurons and latents one by one, and of nodes, a line's answer lists those that matter most in its prompt:
what it does not list counts as 0 in that line, so that all means are over all lines; `lines` says in how many
something was listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tdb_client.node_table import NodeScalar
from tdb_client.nodes import Node
from tdb_client.sweep.journal import Record

By = Literal["component", "node"]
Columns = dict[str, list[object]]
"""A table: columns of one length by name."""

_SUMMED = frozenset({"layer", "attention_head", "whole_head", "whole_mlp"})
"""Types of nodes that stand for all that a head, an MLP or the embedding does at a token."""

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


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row of the table is about."""

    name: str
    type: str
    layer: int | None = None
    index: int | None = None
    token: int | None = None
    attended_to: int | None = None


def table_of_nodes(records: Iterable[Record], by: By) -> Columns:
    """A row per component, or per node, the largest mean direct effect first.

    Args:
        records: of the lines, with the sums of their components, their nodes, and each scalar of both.
        by: `component` for sums over a line's tokens, `node` for token by token.
    """
    rows: dict[_Row, list[Spread]] = {}
    n_lines = 0
    for record in records:
        n_lines += 1
        for row, values in _values(record, by).items():
            spreads = rows.setdefault(row, [Spread() for _ in SCALARS])
            for spread, value in zip(spreads, values, strict=True):
                spread.add(value)
    whole = [
        (row, spreads[0].n, [one.with_zeros(n_lines) for one in spreads]) for row, spreads in rows.items()
    ]
    whole.sort(key=lambda one: (-_size(one[2][0].mean), one[0].name))
    fields = ["type", "layer", "index", *(("token", "attended_to") if by == "node" else ())]
    columns: Columns = {by: [row.name for row, _, _ in whole]}
    columns |= {field: [getattr(row, field) for row, _, _ in whole] for field in fields}
    columns["lines"] = [n for _, n, _ in whole]
    return columns | _spreads({name: [one[2][i] for one in whole] for i, name in enumerate(SCALARS)})


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


def _values(record: Record, by: By) -> dict[_Row, list[float]]:
    """The scalars of a line's nodes, or sums over its tokens by component: nan for what does not add up."""
    found: dict[_Row, list[float]] = {}
    if by == "component":
        sums = record["components"]
        columns = zip(*(sums.get(name) or [math.nan] * len(sums["names"]) for name in SCALARS), strict=True)
        found = {_row_of(name): list(values) for name, values in zip(sums["names"], columns, strict=True)}
    for spelled, *values in zip(record["nodes"], *(record[name] for name in SCALARS), strict=True):
        row = _row_of_node(spelled, by)
        if row is not None:
            before = found.get(row, [0.0] * len(values))
            found[row] = [a + b for a, b in zip(before, values, strict=True)]
    return found


@lru_cache(maxsize=100_000)
def _row_of_node(spelled: str, by: By) -> _Row | None:
    """None for a node of a component that the server sums."""
    node = Node.parse(spelled)
    if by == "node":
        return _Row(spelled, node.kind, node.layer, node.index, node.token, node.attended_to)
    if node.type in _SUMMED:
        return None
    return _Row(node.component, node.kind, node.layer, node.index)


@lru_cache(maxsize=100_000)
def _row_of(component: str) -> _Row:
    """Of a component as `ComponentTable` names it: `embedding`, `L3 head 5`, `L3 mlp`, `L3 attention`."""
    layer, _, kind = component.partition(" ")
    if not kind:
        return _Row(component, component)
    kind, _, index = kind.partition("head ") if kind.startswith("head ") else (kind, "", "")
    return _Row(component, kind or "head", int(layer[1:]), int(index) if index else None)

"""Looks up the numbers of every group at the nodes that a call lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeType, PassType
from tdb_server.engine.derive import Derived
from tdb_server.engine.node_tables import NodeTable
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_groups import Group, ranked_pass, ranks_only_logits
from tdb_server.engine.products import NodeCoordinates, Product, spans_of
from tdb_server.engine.transfers import Array

_Use = tuple[int, str, int]
"""A row, the name of a spec that wants a derived scalar, and the place of the spec's group that has it."""


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one type that some derived scalars of a group are looked up at, sorted by layer.

    Attributes:
        node_type: what tables have them under.
        arrays: rows of the group, places of layers, and the coordinates along each axis in node order [m].
        spans: as in `NodeCoordinates`.
        order: what sorted the nodes, that is where each comes from among those that were asked for [m].
        pairs: of each row and name, which of those that were asked for are its own.
        scalars: the derived scalars, each with what wants it.
    """

    node_type: tuple[NodeType, int]
    arrays: list[Array]
    spans: list[tuple[int, slice]]
    order: Array
    pairs: dict[tuple[int, str], slice]
    scalars: list[tuple[Product, list[_Use]]]

    @property
    def is_on_host(self) -> bool:
        """Whether the numbers are."""
        return self.scalars[0][0].device.type == "cpu"

    def values(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """The numbers of each scalar [m]. What several of them have as a factor is gathered once."""
        rows, layers, *others = arrays
        nodes = NodeCoordinates(rows, layers, self.spans)
        placed: dict[int, tuple[list[Tensor], Tensor | None]] = {}
        gathered: dict[int, Tensor] = {}
        found = []
        for product, _ in self.scalars:
            if id(product.ids) not in placed:
                by_axis = dict(zip(product.order, others, strict=True))
                placed[id(product.ids)] = product.placed(nodes, by_axis)
            places, is_there = placed[id(product.ids)]
            for factor in product.factors:
                if id(factor) not in gathered:
                    gathered[id(factor)] = factor.at(nodes, *places)
            numbers = reduce(torch.mul, [gathered[id(factor)] for factor in product.factors])
            found.append(numbers if is_there is None else numbers * is_there)
        return found


@dataclass(frozen=True)
class LookUps:
    """Which numbers of which nodes every result wants."""

    nodes: list[_Nodes]

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device: of products that are there."""
        return [array for one in self.nodes if not one.is_on_host for array in one.arrays]

    def values(self, uploaded: Sequence[Tensor]) -> list[Tensor]:
        """The numbers, given the arrays on the device."""
        waiting, found = iter(uploaded), []
        for one in self.nodes:
            found += one.values(
                [torch.from_numpy(x) if one.is_on_host else next(waiting) for x in one.arrays]
            )
        return found


def look_ups(
    plan: Plan, derived: Sequence[Derived], tables: Sequence[dict[str, NodeTable]], *, only_logits: bool
) -> LookUps:
    """What is to be looked up.

    Args:
        tables: of each call, by name.
    """
    found: dict[tuple[object, ...], _Nodes] = {}
    for group_index, group in enumerate(plan.groups):
        by_scalar: dict[tuple[DerivedScalar, PassType], list[_Use]] = {}
        for name, spec in group.specs.items():
            if ranks_only_logits(spec) == only_logits:
                for place, (_, scalars) in enumerate(spec.groups):
                    for scalar in scalars:
                        uses = by_scalar.setdefault((scalar, ranked_pass(spec, scalar)), [])
                        uses += [(row, name, place) for row in range(group.start, group.stop)]
        for (scalar, pass_type), uses in by_scalar.items():
            product = derived[group_index].products[scalar, pass_type]
            node_type = scalar.declared.node_type, len(product.order)
            of_pairs = {
                (row, name): table.by_type[node_type]
                for row, name, _ in uses
                for table in [tables[plan.rows[row].call_index][name]]
                if node_type in table.by_type
            }
            if not of_pairs:
                continue
            key = (group_index, node_type, product.layers, id(product.tokens), product.order, *of_pairs)
            if key not in found:
                found[key] = _nodes_in(product, node_type, group, of_pairs)
            found[key].scalars.append((product, [one for one in uses if one[:2] in of_pairs]))
    return LookUps([one for one in found.values() if len(one.order)])


def _nodes_in(
    product: Product,
    node_type: tuple[NodeType, int],
    group: Group,
    of_pairs: dict[tuple[int, str], tuple[Array, Array, Array]],
) -> _Nodes:
    """Where the nodes of some rows and names are in a product; without those that it does not cover."""
    pairs, stop = {}, 0
    for pair, (own, _, _) in of_pairs.items():
        pairs[pair] = slice(stop, stop := stop + len(own))
    rows = np.concatenate([np.full(len(one[0]), row - group.start) for (row, _), one in of_pairs.items()])
    layers, indices = (np.concatenate([one[axis] for one in of_pairs.values()]) for axis in (1, 2))
    known = np.array([-1 if one is None else one for one in product.layers])
    places = np.searchsorted(known, layers).clip(max=len(known) - 1)
    is_covered, indices = product.covered(rows, indices)
    order = np.flatnonzero(is_covered & (known[places] == layers))
    order = order[np.argsort(places[order], kind="stable")]
    arrays = [one.astype(np.int64) for one in (rows[order], places[order], *indices[order].T)]
    return _Nodes(node_type, arrays, spans_of(places[order]), order, pairs, [])

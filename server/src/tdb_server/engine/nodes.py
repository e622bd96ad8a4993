"""From products to nodes.

Every derived scalar is gone through once, for its best nodes and its sums. Then what was chosen under each
name is united, and every group's number at each of these nodes is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.axes import TOKEN_DIMENSIONS
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension, NodeIndex, Nodes, NodeType, PassType
from tdb_server.domain.requests import ComponentTotalsSpec, MultipleTopKSpec
from tdb_server.domain.results import (
    ComponentTotalsResult,
    GroupResult,
    LabelledArray,
    MultipleTopKResult,
)
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_groups import (
    Group,
    Ranking,
    Summing,
    ranked_pass,
    rankings_of,
    ranks_only_logits,
    summing_of,
    total_of,
)
from tdb_server.engine.products import NodeCoordinates, Product, spans_of
from tdb_server.engine.rows import Rows
from tdb_server.engine.scalars import product_of
from tdb_server.engine.top_nodes import BestNodes, TopNodes
from tdb_server.engine.transfers import Array, download

_TOKENS = Dimension.SEQUENCE_TOKENS


@dataclass(frozen=True)
class Derived:
    """What a group's derived scalars gave: the best nodes of each row on the host, sums on the device."""

    products: dict[tuple[DerivedScalar, PassType], Product]
    best: dict[Ranking, list[BestNodes]]
    sums: dict[Summing, Tensor]


def derive(
    plan: Plan,
    groups: Sequence[tuple[Group, Rows]],
    *,
    only_logits: bool,
    check_cancelled: Callable[[], None],
) -> list[Derived]:
    """Goes through all derived scalars of all groups; then one copy brings the best nodes to the host.

    Raises:
        Cancelled: as `check_cancelled`, which is asked between parts.
    """
    waiting = []
    for group, rows in groups:
        rankings, sums = group.rankings(only_logits=only_logits), group.sums(only_logits=only_logits)
        wanted = {(one.scalar, one.pass_type): None for one in rankings}
        wanted |= {(one.scalar, pass_type): None for one in sums for pass_type in one.pass_types}
        products: dict[tuple[DerivedScalar, PassType], Product] = {}
        tops: dict[Ranking, TopNodes] = {}
        totals: dict[Summing, Tensor] = {}
        for scalar, pass_type in wanted:
            product = products[scalar, pass_type] = product_of(rows, scalar, pass_type)
            of_it = [one for one in rankings if (one.scalar, one.pass_type) == (scalar, pass_type)]
            own_tops = {one: _top_nodes(plan, group, product, one) for one in of_it}
            own_sums = [one for one in sums if one.scalar is scalar and pass_type in one.pass_types]
            _go_through(product, list(own_tops.values()), own_sums, totals, check_cancelled)
            tops |= own_tops
        waiting.append((products, tops, totals))
    arrays = iter(download([one for _, tops, _ in waiting for top in tops.values() for one in top.tensors]))
    return [
        Derived(
            products,
            {one: top.best([next(arrays) for _ in top.tensors]) for one, top in tops.items()},
            totals,
        )
        for products, tops, totals in waiting
    ]


def _go_through(
    product: Product,
    tops: Sequence[TopNodes],
    sums: Sequence[Summing],
    totals: dict[Summing, Tensor],
    check_cancelled: Callable[[], None],
) -> None:
    """Ranks a product's numbers, and adds them to their sums."""
    has_known = product.known_sum is not None
    known = [one for one in sums if has_known and one.keep == (_TOKENS,) and not one.by_layer]
    for part in product.parts():
        check_cancelled()
        numbers = product.numbers(part)
        for one in sums:
            if one not in known:
                add = product.add_total if one.by_layer else product.add_sum
                totals[one] = add(one.keep, part, numbers, totals.get(one))
        for top in tops:
            if top.product is product:
                top.add(part, numbers)
    for top in tops:
        if top.product is not product:  # but at one token of each row
            check_cancelled()
            for part in top.product.parts():
                top.add(part, top.product.numbers(part))
    for one in known:
        totals[one] = product.known_sum  # type: ignore[assignment]


def _top_nodes(plan: Plan, group: Group, product: Product, ranking: Ranking) -> TopNodes:
    """What ranks a product's numbers, at one token where the ranking is of one."""
    rows = plan.rows[group.rows]
    ks = [
        max(
            spec.top_and_bottom_k
            for name, spec in row.top_k_specs.items()
            for of_group, scalars in spec.groups
            if ranking.scalar in scalars and ranking in rankings_of(name, spec, of_group, ranking.scalar)
        )
        for row in rows
    ]
    if ranking.token_of is not None and product.token_axis is not None:
        tokens = [row.processing[ranking.token_of].token_index for row in rows]  # type: ignore[union-attr]
        product = product.at_tokens(np.array(tokens))
    first = ranking.first_layer_index or 0
    n_left_out = sum(one is not None and one < first for one in product.layers)
    return TopNodes(product, ks, ranking.largest, n_left_out)


# The union


@dataclass(frozen=True)
class NodeTable:
    """The nodes that a call lists under a name.

    Attributes:
        nodes: in first-seen order.
        by_type: of each node type, where its nodes stand in `nodes` [m], their layers, -1 for none [m], and
            their indices [m, n_axes].
    """

    nodes: Nodes
    by_type: dict[tuple[NodeType, int], tuple[Array, Array, Array]]


def node_table(nodes: Sequence[NodeIndex]) -> NodeTable:
    """Arranges nodes by type, and by how many indices they have."""
    places: dict[tuple[NodeType, int], list[int]] = {}
    for place, node in enumerate(nodes):
        places.setdefault((node.node_type, len(node.tensor_indices)), []).append(place)
    by_type = {
        key: (
            np.array(own),
            np.array([-1 if (at := nodes[one].layer_index) is None else at for one in own]),
            np.array([nodes[one].tensor_indices for one in own]),
        )
        for key, own in places.items()
    }
    return NodeTable(Nodes(nodes), by_type)


def union_of_nodes(
    plan: Plan, derived: Sequence[Derived], call_index: int, *, only_logits: bool
) -> dict[str, NodeTable]:
    """The nodes that any sub-request of a call chose under each name, in first-seen order."""
    chosen: dict[str, dict[NodeIndex, None]] = {}
    for row_index in plan.rows_of[call_index]:
        group_index = plan.group_of[row_index]
        best = derived[group_index].best
        row_in_group = row_index - plan.groups[group_index].start
        for name, spec in plan.rows[row_index].top_k_specs.items():
            if ranks_only_logits(spec) == only_logits:
                own = chosen.setdefault(name, {})
                for group, scalars in spec.groups:
                    for scalar in scalars:
                        for ranking in rankings_of(name, spec, group, scalar):
                            k = spec.top_and_bottom_k
                            own |= dict.fromkeys(_nodes(scalar, best[ranking], row_in_group, k))
    return {name: node_table(list(own)) for name, own in chosen.items()}


def _nodes(scalar: DerivedScalar, best: Sequence[BestNodes], row: int, k: int) -> Iterator[NodeIndex]:
    node_type = scalar.declared.node_type
    for layer, *indices in best[row].first(k).tolist():
        yield NodeIndex(node_type, None if layer < 0 else layer, tuple(indices))


# Looking up


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one type that some derived scalars of a group are looked up at, sorted by layer.

    Attributes:
        node_type: what tables have them under.
        arrays: rows of the group, places of layers, and the coordinates along each axis in node order [m].
        spans: as in `NodeCoordinates`.
        order: what sorted the nodes, that is where each comes from among those that were asked for [m].
        pairs: of each row and name, which of those that were asked for are its own.
        wanted: the derived scalars, each with the rows, names and places of groups that want it.
    """

    node_type: tuple[NodeType, int]
    arrays: list[Array]
    spans: list[tuple[int, slice]]
    order: Array
    pairs: dict[tuple[int, str], slice]
    wanted: list[tuple[Product, list[tuple[int, str, int]]]]

    @property
    def is_on_host(self) -> bool:
        """Whether the numbers are."""
        return self.wanted[0][0].device.type == "cpu"

    def values(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """The numbers of each scalar [m]. What several of them have as a factor is gathered once."""
        rows, layers, *others = arrays
        nodes = NodeCoordinates(rows, layers, self.spans)
        placed: dict[int, tuple[list[Tensor], Tensor | None]] = {}
        gathered: dict[int, Tensor] = {}
        found = []
        for product, _ in self.wanted:
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
        by_scalar: dict[tuple[DerivedScalar, PassType], list[tuple[int, str, int]]] = {}
        for name, spec in group.specs.items():
            if ranks_only_logits(spec) == only_logits:
                for place, (_, scalars) in enumerate(spec.groups):
                    for scalar in scalars:
                        own = by_scalar.setdefault((scalar, ranked_pass(spec, scalar)), [])
                        own += [(row, name, place) for row in range(group.start, group.stop)]
        for (scalar, pass_type), asked in by_scalar.items():
            product = derived[group_index].products[scalar, pass_type]
            node_type = scalar.declared.node_type, len(product.order)
            of_pairs = {
                (row, name): table.by_type[node_type]
                for row, name, _ in asked
                for table in [tables[plan.rows[row].call_index][name]]
                if node_type in table.by_type
            }
            if not of_pairs:
                continue
            key = (group_index, node_type, product.layers, id(product.tokens), product.order, *of_pairs)
            if key not in found:
                found[key] = _nodes_in(product, node_type, group, of_pairs)
            found[key].wanted.append((product, [one for one in asked if one[:2] in of_pairs]))
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


def top_k_results(
    plan: Plan,
    looked_up: LookUps,
    tables: Sequence[dict[str, NodeTable]],
    values: Sequence[Array],
    totals: Sequence[dict[Summing, Array]],
    *,
    only_logits: bool,
) -> dict[tuple[int, str], MultipleTopKResult]:
    """The results by row and name.

    Args:
        values: the numbers that were looked up.
        totals: of each group.
    """
    dtype = next((one.dtype for one in values), np.dtype(np.float32))
    specs = {
        (index, name): spec
        for index, row in enumerate(plan.rows)
        for name, spec in row.top_k_specs.items()
        if ranks_only_logits(spec) == only_logits
    }
    tables_of = {(row, name): tables[plan.rows[row].call_index][name] for row, name in specs}
    numbers = {
        key: np.zeros((len(one.groups), len(tables_of[key].nodes)), dtype) for key, one in specs.items()
    }
    waiting = iter(values)
    for nodes in looked_up.nodes:
        for _, asked in nodes.wanted:
            everywhere = np.zeros(max(own.stop for own in nodes.pairs.values()), dtype)
            everywhere[nodes.order] = next(waiting)
            for row, name, group in asked:
                places, _, _ = tables_of[row, name].by_type[nodes.node_type]
                numbers[row, name][group, places] = everywhere[nodes.pairs[row, name]]
    return {
        (row, name): MultipleTopKResult(
            tables_of[row, name].nodes,
            {
                group: GroupResult(numbers[row, name][place], _sums(plan, row, spec, scalars, totals))
                for place, (group, scalars) in enumerate(spec.groups)
            },
        )
        for (row, name), spec in specs.items()
    }


def component_totals(
    plan: Plan, derived: Sequence[Derived], totals: Sequence[dict[Summing, Array]], n_layers: int
) -> dict[tuple[int, str], ComponentTotalsResult]:
    """Sums by component, by row and name; zero in layers that a derived scalar does not have.

    Args:
        totals: of each group.
    """
    found = {}
    for row_index, row in enumerate(plan.rows):
        group_index = plan.group_of[row_index]
        products, own = derived[group_index].products, totals[group_index]
        row_in_group = row_index - plan.groups[group_index].start
        for name, spec in row.processing.items():
            if not isinstance(spec, ComponentTotalsSpec):
                continue
            by_scalar = {}
            for scalar in spec.derived_scalars:
                summing = total_of(scalar, spec.by_token)
                total = own[summing][row_in_group]
                if spec.by_token:
                    total = np.ascontiguousarray(total[:, : row.n_tokens])  # without padding
                if not scalar.declared.is_per_layer:
                    by_scalar[scalar] = LabelledArray(total[0], summing.keep)
                    continue
                everywhere = np.zeros((n_layers, *total.shape[1:]), total.dtype)
                layers = [one for one in products[scalar, PassType.FORWARD].layers if one is not None]
                everywhere[layers] = total
                by_scalar[scalar] = LabelledArray(everywhere, (Dimension.LAYERS, *summing.keep))
            found[row_index, name] = ComponentTotalsResult(by_scalar)
    return found


def _sums(
    plan: Plan,
    row_index: int,
    spec: MultipleTopKSpec,
    scalars: Sequence[DerivedScalar],
    totals: Sequence[dict[Summing, Array]],
) -> dict[DerivedScalar, LabelledArray]:
    """A row's sums, without padding."""
    n_tokens, group = plan.rows[row_index].n_tokens, plan.group_of[row_index]
    found = {}
    for scalar in scalars:
        summing = summing_of(spec, scalar)
        total = totals[group][summing][row_index - plan.groups[group].start]
        own = tuple(slice(n_tokens if one in TOKEN_DIMENSIONS else None) for one in summing.keep)
        found[scalar] = LabelledArray(np.ascontiguousarray(total[own]), summing.keep)
    return found

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

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension, NodeIndex, Nodes, NodeType, PassType
from tdb_server.domain.requests import MultipleTopKSpec
from tdb_server.domain.results import GroupResult, LabelledArray, MultipleTopKResult
from tdb_server.engine.plan import (
    Group,
    Plan,
    Ranking,
    Row,
    Summing,
    ranked_pass,
    rankings_of,
    ranks_only_logits,
    summing_of,
    top_k_specs,
)
from tdb_server.engine.products import Layers, NodeCoordinates, Part, Product
from tdb_server.engine.rows import Rows
from tdb_server.engine.scalars import product_of
from tdb_server.engine.top_nodes import (
    BestNodes,
    BlockMaxima,
    HostTop,
    Numbers,
    PlainTop,
    TopNodes,
    numbers_at_tokens,
)
from tdb_server.engine.transfers import Array, download

Products = dict[tuple[DerivedScalar, PassType], Product]
_TOKENS = Dimension.SEQUENCE_TOKENS


@dataclass(frozen=True)
class Derived:
    """What a group's derived scalars gave: the best nodes of each row on the host, sums on the device."""

    products: Products
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
    for group, scalars in groups:
        rankings, sums = group.rankings(only_logits=only_logits), group.sums(only_logits=only_logits)
        wanted = {(one.scalar, one.pass_type): None for one in rankings}
        wanted |= {(one.scalar, pass_type): None for one in sums for pass_type in one.pass_types}
        products = {key: product_of(scalars, *key) for key in wanted}
        tops = {one: _top_nodes(plan, group, products[one.scalar, one.pass_type], one) for one in rankings}
        totals: dict[Summing, Tensor] = {}
        for (scalar, pass_type), product in products.items():
            own_tops = [one for one in rankings if (one.scalar, one.pass_type) == (scalar, pass_type)]
            own_sums = [one for one in sums if one.scalar is scalar and pass_type in one.pass_types]
            for part in product.parts():
                check_cancelled()
                _go_through(
                    plan, group, product, part, {one: tops[one] for one in own_tops}, own_sums, totals
                )
        waiting.append((products, tops, totals))
    arrays = iter(
        download([tensor for _, tops, _ in waiting for top in tops.values() for tensor in top.tensors()])
    )
    return [
        Derived(
            products,
            {one: top.best([next(arrays) for _ in top.tensors()]) for one, top in tops.items()},
            totals,
        )
        for products, tops, totals in waiting
    ]


def _top_nodes(plan: Plan, group: Group, product: Product, ranking: Ranking) -> TopNodes:
    """The way to rank that suits a product and the device it is on."""
    rows = plan.rows[group.rows]
    ks = [
        max(
            spec.top_and_bottom_k
            for name, spec in top_k_specs(row).items()
            for of_group, scalars in spec.groups
            if ranking.scalar in scalars and ranking in rankings_of(name, spec, of_group, ranking.scalar)
        )
        for row in rows
    ]
    if product.layers == (None,):
        return HostTop(product, ks, [_length_of(product, row) for row in rows], ranking.largest)
    way = BlockMaxima if product.device.type == "cpu" else PlainTop
    return way(product, ks, ranking.largest)


def _length_of(product: Product, row: Row) -> int:
    """How much of a product's token axis is a row's own."""
    if product.tokens is None:
        return row.n_tokens
    is_of_logits = product.known_sum is not None
    return len(row.logit_tokens if is_of_logits else row.direction_tokens)


def _go_through(
    plan: Plan,
    group: Group,
    product: Product,
    part: Part,
    tops: dict[Ranking, TopNodes],
    sums: Sequence[Summing],
    totals: dict[Summing, Tensor],
) -> None:
    values = part.numbers()
    for one in sums:
        if product.known_sum is not None and one.keep == (_TOKENS,):
            totals[one] = product.known_sum
        else:
            totals[one] = product.add_sum(one.keep, part, values, totals.get(one))
    for ranking, top in tops.items():
        seen = part, values
        if ranking.first_layer_index is not None and product.layers != (None,):
            first = sum(one is not None and one < ranking.first_layer_index for one in product.layers)
            seen = part.behind(first), values[:, max(0, first - part.first_layer) :]
            if not seen[1].shape[1]:
                continue
        ranked = product.ranked(seen[1], seen[0], largest=ranking.largest)
        if ranking.token_of is None or _TOKENS not in product.axes:
            top.add(Numbers(seen[0], ranked))
        else:
            tokens = [
                row.processing[ranking.token_of].token_index  # type: ignore[union-attr]
                for row in plan.rows[group.rows][part.rows]
            ]
            top.add(numbers_at_tokens(product, seen[0], ranked, np.array(tokens), largest=ranking.largest))


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
    for row_index in plan.rows_of(call_index):
        group_index = plan.group_of[row_index]
        best = derived[group_index].best
        row_in_group = row_index - plan.groups[group_index].start
        for name, spec in top_k_specs(plan.rows[row_index]).items():
            if ranks_only_logits(spec) == only_logits:
                own = chosen.setdefault(name, {})
                for group, scalars in spec.groups:
                    for scalar in scalars:
                        for ranking in rankings_of(name, spec, group, scalar):
                            k = spec.top_and_bottom_k
                            own |= dict.fromkeys(_nodes(scalar, best[ranking], row_in_group, k))
    return {name: node_table(list(own)) for name, own in chosen.items()}


def _nodes(scalar: DerivedScalar, best: Sequence[BestNodes], row: int, k: int) -> Iterator[NodeIndex]:
    if not best:  # all layers are left out
        return
    node_type = scalar.declared.node_type
    for layer, *indices in best[row].first(k).tolist():
        yield NodeIndex(node_type, None if layer < 0 else layer, tuple(indices))


# Looking up


@dataclass(frozen=True)
class _Wanted:
    """Nodes of one derived scalar to look up.

    Attributes:
        product: of the derived scalar.
        coordinates: key of the uploaded coordinates.
        targets: for each node its row in the batch, the name, the group's place and the node's place.
    """

    product: Product
    coordinates: tuple[object, ...]
    targets: list[tuple[int, str, int, Array]]


@dataclass(frozen=True)
class LookUps:
    """Which numbers of which nodes every result wants.

    Attributes:
        wanted: by derived scalar of each group.
        coordinates: where the nodes are, by key.
    """

    wanted: list[_Wanted]
    coordinates: dict[tuple[object, ...], _Coordinates]

    @property
    def arrays(self) -> list[Array]:
        """What is brought to the device: of products that are there."""
        return [array for one in self.coordinates.values() if not one.is_on_host for array in one.arrays]

    def values(self, uploaded: Sequence[Tensor]) -> list[Tensor]:
        """The numbers, given the arrays on the device."""
        waiting = iter(uploaded)
        on_device = {}
        for key, one in self.coordinates.items():
            host = (torch.from_numpy(array) for array in one.arrays)
            on_device[key] = one.on_device([next(host if one.is_on_host else waiting) for _ in one.arrays])
        gathered: dict[tuple[int, object], Tensor] = {}
        places: dict[tuple[int, object], tuple[list[Tensor], Tensor | None]] = {}
        return [_values(one, on_device[one.coordinates], gathered, places) for one in self.wanted]


def look_ups(
    plan: Plan, derived: Sequence[Derived], tables: Sequence[dict[str, NodeTable]], *, only_logits: bool
) -> LookUps:
    """What is to be looked up.

    Args:
        tables: of each call, by name.
    """
    found = LookUps([], {})
    for group_index, group in enumerate(plan.groups):
        _want(plan, group_index, group, derived[group_index], tables, only_logits, found)
    return found


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
    found = _by_row(plan, looked_up, values, tables, only_logits)
    return {
        (row, name): _result(plan, row, name, table, numbers, totals)
        for (row, name), (table, numbers) in found.items()
    }


@dataclass(frozen=True)
class _Coordinates:
    """Where nodes are, sorted by layer, on the host.

    Attributes:
        arrays: rows of the group, places of layers, and the coordinates along each axis in node order.
        spans: as in `NodeCoordinates`.
        order: what sorted the nodes, that is where each comes from among those that were asked for.
        dimensions: of the coordinates.
        is_on_host: whether the product is.
    """

    arrays: list[Array]
    spans: list[tuple[int, slice]]
    order: Array
    dimensions: tuple[Dimension, ...]
    is_on_host: bool

    def on_device(self, arrays: Sequence[Tensor]) -> tuple[NodeCoordinates, dict[Dimension, Tensor]]:
        """As a product takes them."""
        rows, layers, *others = arrays
        return NodeCoordinates(rows, layers, self.spans), dict(zip(self.dimensions, others, strict=True))


def _want(
    plan: Plan,
    group_index: int,
    group: Group,
    derived: Derived,
    tables: Sequence[dict[str, NodeTable]],
    only_logits: bool,
    found: LookUps,
) -> None:
    """Adds what a group's rows want of each derived scalar."""
    by_scalar: dict[tuple[DerivedScalar, PassType], list[tuple[int, str, int]]] = {}
    for name, spec in group.specs.items():
        if ranks_only_logits(spec) != only_logits:
            continue
        for place, (_, scalars) in enumerate(spec.groups):
            for scalar in scalars:
                own = by_scalar.setdefault((scalar, ranked_pass(spec, scalar)), [])
                own += [(row, name, place) for row in range(group.start, group.stop)]
    for (scalar, pass_type), asked in by_scalar.items():
        declared, product = scalar.declared, derived.products[scalar, pass_type]
        node_type = declared.node_type, len(declared.dimensions)
        asked = [one for one in asked if node_type in tables[plan.rows[one[0]].call_index][one[1]].by_type]
        if not asked:
            continue
        pairs = tuple(dict.fromkeys((row, name) for row, name, _ in asked))
        key = (group_index, node_type, product.layers, id(product.tokens), product.order, pairs)
        if key not in found.coordinates:
            found.coordinates[key] = _coordinates(plan, group, product, node_type, pairs, tables)
        targets = [
            (row, name, place, tables[plan.rows[row].call_index][name].by_type[node_type][0])
            for row, name, place in asked
        ]
        found.wanted.append(_Wanted(product, key, targets))


def _coordinates(
    plan: Plan,
    group: Group,
    product: Product,
    node_type: tuple[NodeType, int],
    pairs: Sequence[tuple[int, str]],
    tables: Sequence[dict[str, NodeTable]],
) -> _Coordinates:
    """Where the nodes of some rows and names are in a product; without those that it does not cover."""
    of_pairs = [tables[plan.rows[row].call_index][name].by_type[node_type] for row, name in pairs]
    rows = np.concatenate(
        [
            np.full(len(places), row - group.start)
            for (row, _), (places, _, _) in zip(pairs, of_pairs, strict=True)
        ]
    )
    layers = np.concatenate([one[1] for one in of_pairs])
    indices = np.concatenate([one[2] for one in of_pairs])
    known = np.array([-1 if one is None else one for one in product.layers])
    places = np.searchsorted(known, layers).clip(max=len(known) - 1)
    is_covered = known[places] == layers
    if product.tokens is not None:
        axis = product.order.index(_TOKENS)
        is_token = product.tokens[rows] == indices[:, axis, None]
        is_covered &= is_token.any(axis=1)
        indices = indices.copy()
        indices[:, axis] = is_token.argmax(axis=1)
    order = np.flatnonzero(is_covered)
    order = order[np.argsort(places[order], kind="stable")]
    starts = np.searchsorted(places[order], np.arange(len(known) + 1))
    spans = [
        (layer, slice(int(starts[layer]), int(starts[layer + 1])))
        for layer in range(len(known))
        if starts[layer + 1] > starts[layer]
    ]
    arrays = [rows[order], places[order], *indices[order].T]
    on_host = product.device.type == "cpu"
    return _Coordinates([one.astype(np.int64) for one in arrays], spans, order, product.order, on_host)


def _values(
    wanted: _Wanted,
    coordinates: tuple[NodeCoordinates, dict[Dimension, Tensor]],
    gathered: dict[tuple[int, object], Tensor],
    places: dict[tuple[int, object], tuple[list[Tensor], Tensor | None]],
) -> Tensor:
    """The numbers of the nodes. What several scalars have as a factor is gathered once."""
    product, (nodes, by_axis) = wanted.product, coordinates
    if not len(nodes.rows):
        return product.factors[0].tensors[0].new_zeros(0)
    at_ids = id(product.ids), wanted.coordinates
    if at_ids not in places:
        places[at_ids] = product.placed(nodes, by_axis)
    placed, is_there = places[at_ids]

    def gather(factor: Layers) -> Tensor:
        key = id(factor), wanted.coordinates
        if key not in gathered:
            gathered[key] = factor.at(nodes, *placed)
        return gathered[key]

    numbers = reduce(torch.mul, [gather(one) for one in product.factors])
    return numbers if is_there is None else numbers * is_there


def _by_row(
    plan: Plan,
    looked_up: LookUps,
    values: Sequence[Array],
    tables: Sequence[dict[str, NodeTable]],
    only_logits: bool,
) -> dict[tuple[int, str], tuple[NodeTable, Array]]:
    """Each row's and name's nodes, and every group's number at each of them [groups, n]."""
    found = {}
    dtype = next((one.dtype for one in values), np.dtype(np.float32))
    for index, planned in enumerate(plan.rows):
        for name, spec in top_k_specs(planned).items():
            if ranks_only_logits(spec) == only_logits:
                table = tables[planned.call_index][name]
                found[index, name] = table, np.zeros((len(spec.groups), len(table.nodes)), dtype)
    for one, numbers in zip(looked_up.wanted, values, strict=True):
        pairs: dict[tuple[int, str], int] = {}
        n_nodes = 0
        for row, name, _, places in one.targets:
            if (row, name) not in pairs:
                pairs[row, name] = n_nodes
                n_nodes += len(places)
        everywhere = np.zeros(n_nodes, dtype)
        everywhere[looked_up.coordinates[one.coordinates].order] = numbers
        for row, name, group, places in one.targets:
            start = pairs[row, name]
            found[row, name][1][group, places] = everywhere[start : start + len(places)]
    return found


def _result(
    plan: Plan,
    row_index: int,
    name: str,
    table: NodeTable,
    numbers: Array,
    totals: Sequence[dict[Summing, Array]],
) -> MultipleTopKResult:
    """One row's result under a name, without padding."""
    row, group_index = plan.rows[row_index], plan.group_of[row_index]
    spec = row.processing[name]
    assert isinstance(spec, MultipleTopKSpec)
    groups = {}
    for place, (group, scalars) in enumerate(spec.groups):
        sums = {}
        for scalar in scalars:
            summing = summing_of(spec, scalar)
            total = totals[group_index][summing][row_index - plan.groups[group_index].start]
            own = tuple(slice(row.n_tokens if one in _TOKEN_AXES else None) for one in summing.keep)
            sums[scalar] = LabelledArray(np.ascontiguousarray(total[own]), summing.keep)
        groups[group] = GroupResult(numbers[place], sums)
    return MultipleTopKResult(table.nodes, groups)


_TOKEN_AXES = frozenset({_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS})

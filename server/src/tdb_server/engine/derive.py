"""Goes once through every derived scalar that is asked for: for its best nodes, and its sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension, PassType
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_groups import Group, NodeRanking, Summing, rankings_of
from tdb_server.engine.products import Product
from tdb_server.engine.rows import Rows
from tdb_server.engine.scalars import product_of
from tdb_server.engine.top_nodes import BestNodes, TopNodes
from tdb_server.engine.transfers import download

_TOKENS = Dimension.SEQUENCE_TOKENS


@dataclass(frozen=True)
class Derived:
    """What a group's derived scalars gave: the best nodes of each row on the host, sums on the device."""

    products: dict[tuple[DerivedScalar, PassType], Product]
    best: dict[NodeRanking, list[BestNodes]]
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
        Cancelled: as `check_cancelled`, which is asked between parts and rankings.
    """
    derived = []
    for group, rows in groups:
        rankings, sums = group.rankings(only_logits=only_logits), group.sums(only_logits=only_logits)
        scalar_passes = {(one.scalar, one.pass_type): None for one in rankings}
        scalar_passes |= {(one.scalar, pass_type): None for one in sums for pass_type in one.pass_types}
        products: dict[tuple[DerivedScalar, PassType], Product] = {}
        tops: dict[NodeRanking, TopNodes] = {}
        totals: dict[Summing, Tensor] = {}
        for scalar, pass_type in scalar_passes:
            product = products[scalar, pass_type] = product_of(rows, scalar.declared, pass_type)
            its_rankings = [one for one in rankings if (one.scalar, one.pass_type) == (scalar, pass_type)]
            its_tops = {one: _top_nodes(plan, group, product, one) for one in its_rankings}
            its_sums = [one for one in sums if one.scalar is scalar and pass_type in one.pass_types]
            _go_through(product, list(its_tops.values()), its_sums, totals, check_cancelled)
            tops |= its_tops
        derived.append((products, tops, totals))
    arrays = iter(download([one for _, tops, _ in derived for top in tops.values() for one in top.tensors]))
    found = []
    for products, tops, totals in derived:
        best = {}
        for ranking, top in tops.items():
            check_cancelled()
            best[ranking] = top.best([next(arrays) for _ in top.tensors])
        found.append(Derived(products, best, totals))
    return found


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


def _top_nodes(plan: Plan, group: Group, product: Product, ranking: NodeRanking) -> TopNodes:
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
    if ranking.token_of is not None:
        tokens = [row.processing[ranking.token_of].token_index for row in rows]  # type: ignore[union-attr]
        product = product.at_tokens(np.array(tokens))
    first = ranking.first_layer_index or 0
    n_left_out = sum(one is not None and one < first for one in product.layers)
    return TopNodes(product, ks, ranking.largest, n_left_out)

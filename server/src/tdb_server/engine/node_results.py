"""Results about nodes: the groups of the top k, and sums by component."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tdb_server.domain.axes import TOKEN_DIMENSIONS
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension, PassType
from tdb_server.domain.requests import ComponentTotalsSpec, MultipleTopKSpec
from tdb_server.domain.results import ComponentTotalsResult, GroupResult, LabelledArray, MultipleTopKResult
from tdb_server.engine.derive import Derived
from tdb_server.engine.look_ups import LookUps
from tdb_server.engine.node_tables import NodeTable
from tdb_server.engine.plan import Plan
from tdb_server.engine.plan_groups import Summing, ranks_only_logits, summing_of, total_of
from tdb_server.engine.transfers import Array


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
        for _, uses in nodes.scalars:
            everywhere = np.zeros(max(span.stop for span in nodes.pairs.values()), dtype)
            everywhere[nodes.order] = next(waiting)
            for row, name, group in uses:
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
    for scalar in () if spec.omits_sums else scalars:
        summing = summing_of(spec, scalar)
        total = totals[group][summing][row_index - plan.groups[group].start]
        own = tuple(slice(n_tokens if one in TOKEN_DIMENSIONS else None) for one in summing.keep)
        found[scalar] = LabelledArray(np.ascontiguousarray(total[own]), summing.keep)
    return found

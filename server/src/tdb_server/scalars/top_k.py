"""Multiple top-k: the most important nodes of several groups, and every group's value at each of them.

A derived scalar's numbers are computed once for every named result that wants them. Nodes that score exactly
zero are never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import NodeIndex, Nodes, NodeType, PassType
from tdb_server.domain.requests import MultipleTopKSpec
from tdb_server.domain.results import FloatArray, GroupResult, LabelledArray, MultipleTopKResult
from tdb_server.scalars.host_arrays import as_array, as_arrays
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.scalar_pass import LayerNodes, ScalarPass


class TopKPass:
    """One pass over a row's layers for any number of multiple-top-k specs."""

    def __init__(self, run: RowRun, specs: Sequence[MultipleTopKSpec]) -> None:
        self.run = run
        self.specs = specs
        users: dict[tuple[DerivedScalar, PassType], list[MultipleTopKSpec]] = {}
        for spec in specs:
            for scalar in dict.fromkeys(scalar for _, scalars in spec.groups for scalar in scalars):
                users.setdefault((scalar, spec.pass_type), []).append(spec)
        self._passes = {
            (scalar, pass_type): ScalarPass(run, scalar, pass_type, own)
            for (scalar, pass_type), own in users.items()
        }

    def nodes(self, index: int) -> list[NodeIndex]:
        """The nodes that any group of spec `index` chose, in first-seen order."""
        spec = self.specs[index]
        found: dict[NodeIndex, None] = {}
        for group, scalars in spec.groups:
            for scalar in scalars:
                for largest in (True, False) if group.has_bottom else (True,):
                    best = self._passes[scalar, spec.pass_type].best(spec, largest=largest)
                    found |= dict.fromkeys(best)
        return list(found)

    def result(self, index: int, nodes: Nodes) -> MultipleTopKResult:
        """Every group's value at the nodes, and the sums."""
        self.run.check_cancelled()
        spec = self.specs[index]
        values, sums = self._node_values(spec, nodes), self._sums(spec)
        groups = {
            group: GroupResult(of_group, {scalar: sums[scalar] for scalar in scalars})
            for (group, scalars), of_group in zip(spec.groups, values, strict=True)
        }
        return MultipleTopKResult(nodes, groups)

    def _sums(self, spec: MultipleTopKSpec) -> dict[DerivedScalar, LabelledArray]:
        found = {
            scalar: self._passes[scalar, spec.pass_type].sum(spec)
            for _, scalars in spec.groups
            for scalar in scalars
        }
        arrays = as_arrays([numbers for numbers, _ in found.values()])
        return {
            scalar: LabelledArray(array, kept)
            for (scalar, (_, kept)), array in zip(found.items(), arrays, strict=True)
        }

    def _node_values(self, spec: MultipleTopKSpec, nodes: Sequence[NodeIndex]) -> FloatArray:
        """Each group's number at every node [groups, n]: that of its derived scalar for the node's kind."""
        by_type = _by_type(nodes)
        places: list[tuple[int, int]] = []
        found = [torch.zeros(0, dtype=self.run.decoder.dtype, device=self.run.decoder.device)]
        for row, (_, scalars) in enumerate(spec.groups):
            # Of one type there may be two scalars: one that has layers, and one that has none.
            for scalar in scalars:
                is_residual = scalar is DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP
                for (node_type, node_pass), of_type in by_type.items():
                    if node_type is DERIVED_SCALAR_SHAPES[scalar].node_type:
                        positions, numbers = self._passes[scalar, spec.pass_type].at(
                            of_type, spec.pass_type if is_residual else node_pass
                        )
                        places += [(row, position) for position in positions]
                        found += numbers
        found_values = as_array(torch.cat(found))
        values = np.zeros((len(spec.groups), len(nodes)), found_values.dtype)
        values[tuple(np.array(places, int).reshape(-1, 2).T)] = found_values
        return values


def _by_type(nodes: Sequence[NodeIndex]) -> Mapping[tuple[NodeType, PassType], LayerNodes]:
    found: dict[tuple[NodeType, PassType], dict[int | None, list[tuple[int, NodeIndex]]]] = {}
    for position, node in enumerate(nodes):
        of_type = found.setdefault((node.node_type, node.pass_type), {})
        of_type.setdefault(node.layer_index, []).append((position, node))
    return found


def shown_pass(scalar: DerivedScalar, pass_type: PassType) -> PassType:
    """The pass a node is shown with: only what reads a place has a backward pass of its own."""
    return PassType.FORWARD if DERIVED_SCALAR_SHAPES[scalar].place is None else pass_type

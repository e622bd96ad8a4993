"""Multiple top-k: the most important nodes of several groups, and every group's value at each of them.

A derived scalar's numbers are computed once for every named result that wants them. Nodes that score exactly
zero are never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import NodeIndex, NodeType, PassType
from tdb_server.domain.requests import MultipleTopKSpec
from tdb_server.domain.results import FloatArray, GroupResult, MultipleTopKResult
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.scalar_pass import LayerNodes, ScalarPass, is_hidden
from tdb_server.scalars.scalar_values import as_array


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

    def result(self, index: int, nodes: Sequence[NodeIndex]) -> MultipleTopKResult:
        """Every group's value at the nodes, and the sums."""
        self.run.check_cancelled()
        spec = self.specs[index]
        shown = tuple(node for node in nodes if not is_hidden(spec, node.layer_index))
        by_type = _by_type(shown)
        groups = {}
        for group, scalars in spec.groups:
            sums = {scalar: self._passes[scalar, spec.pass_type].sum(spec) for scalar in scalars}
            groups[group] = GroupResult(self._node_values(scalars, spec.pass_type, by_type, len(shown)), sums)
        return MultipleTopKResult(shown, groups)

    def _node_values(
        self,
        scalars: Sequence[DerivedScalar],
        pass_type: PassType,
        nodes: Mapping[tuple[NodeType, PassType], LayerNodes],
        n_nodes: int,
    ) -> FloatArray:
        """The group's number at every node [n]: that of its derived scalar for the node's kind."""
        found = torch.zeros(n_nodes, dtype=self.run.decoder.dtype, device=self.run.decoder.device)
        for (node_type, node_pass), of_type in nodes.items():
            # Of one type there may be two: one that has layers, and one that has none.
            for scalar in (one for one in scalars if DERIVED_SCALAR_SHAPES[one].node_type is node_type):
                is_residual = scalar is DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP
                of_scalar = self._passes[scalar, pass_type]
                positions, numbers = of_scalar.at(of_type, pass_type if is_residual else node_pass)
                found[positions] = numbers
        return as_array(found)


def _by_type(nodes: Sequence[NodeIndex]) -> Mapping[tuple[NodeType, PassType], LayerNodes]:
    found: dict[tuple[NodeType, PassType], dict[int | None, list[tuple[int, NodeIndex]]]] = {}
    for position, node in enumerate(nodes):
        of_type = found.setdefault((node.node_type, node.pass_type), {})
        of_type.setdefault(node.layer_index, []).append((position, node))
    return found


def shown_pass(scalar: DerivedScalar, pass_type: PassType) -> PassType:
    """The pass a node is shown with: only what reads a place has a backward pass of its own."""
    return PassType.FORWARD if DERIVED_SCALAR_SHAPES[scalar].place is None else pass_type

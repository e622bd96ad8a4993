"""Multiple top-k: the most important nodes of several groups, and every group's value at each of them.

Ranking goes layer by layer: a layer's numbers are computed once for every named result that wants them,
ranked, summed and let go. The layers' best are then merged. Nodes that score exactly zero are never chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar, GroupId
from tdb_server.domain.node import Dimension, NodeIndex, NodeType, PassType
from tdb_server.domain.requests import MultipleTopKSpec
from tdb_server.domain.results import FloatArray, GroupResult, LabelledArray, MultipleTopKResult
from tdb_server.scalars.derived import scalar_values
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.scalar_values import ScalarValues

TOKEN_DIMENSIONS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)


@dataclass
class _Ranking:
    """The best of one derived scalar in one group, so far."""

    values: list[Tensor] = field(default_factory=list)
    nodes: list[tuple[int | None, Tensor]] = field(default_factory=list)

    def add(self, values: Tensor, nodes: Tensor, layer_index: int | None) -> None:
        self.values.append(values)
        self.nodes.append((layer_index, nodes))

    def best(self, scalar: DerivedScalar, k: int, largest: bool) -> list[NodeIndex]:
        """The k best of all layers, best first, without zeros; of equals, the first by layer and index."""
        values, nodes = torch.cat(self.values), torch.cat([nodes for _, nodes in self.nodes])
        if len(self.nodes) == 1:
            return self._nodes(scalar, torch.zeros_like(nodes[:k, 0]), values[:k], nodes[:k])
        layers = torch.cat([torch.full_like(one[:, 0], spot) for spot, (_, one) in enumerate(self.nodes)])
        order = torch.arange(len(values), device=values.device)
        for key in (*reversed(nodes.unbind(1)), layers):
            order = order[key[order].argsort(stable=True)]
        order = order[values[order].argsort(descending=largest, stable=True)][:k]
        return self._nodes(scalar, layers[order], values[order], nodes[order])

    def _nodes(
        self, scalar: DerivedScalar, spots: Tensor, values: Tensor, indices: Tensor
    ) -> list[NodeIndex]:
        node_type, is_node = DERIVED_SCALAR_SHAPES[scalar].node_type, values != 0
        return [
            NodeIndex(node_type, self.nodes[spot][0], tuple(one))
            for spot, one in zip(spots[is_node].tolist(), indices[is_node].tolist(), strict=True)
        ]


def spots_of(
    run: RowRun, scalar: DerivedScalar, pass_type: PassType
) -> Iterator[tuple[int | None, PassType]]:
    """The layers, and the passes in each, that a derived scalar has.

    A place read backward adds its gradients to the sums of its activations, and still ranks the
    activations; that is what the reference answers.
    """
    shape = DERIVED_SCALAR_SHAPES[scalar]
    passes = [PassType.FORWARD]
    if pass_type is PassType.BACKWARD:
        passes = [PassType.FORWARD, PassType.BACKWARD] if shape.place is not None else [PassType.BACKWARD]
    for one in passes:
        for layer_index in layers_of(run, scalar):
            yield layer_index, one


def layers_of(run: RowRun, scalar: DerivedScalar) -> Sequence[int | None]:
    """The layers in which a derived scalar exists."""
    shape = DERIVED_SCALAR_SHAPES[scalar]
    if not shape.is_per_layer:
        return [None]
    if shape.node_type.is_latent:
        return sorted(run.autoencoder_of_node(shape.node_type).layers)
    return range(run.n_layers)


class TopKPass:
    """One pass over a row's layers for any number of multiple-top-k specs."""

    def __init__(self, run: RowRun, specs: Sequence[MultipleTopKSpec]) -> None:
        self.run = run
        self.specs = specs
        self._values: dict[tuple[DerivedScalar, int | None, PassType], ScalarValues] = {}
        self._best: dict[tuple[int, GroupId, DerivedScalar, bool], _Ranking] = {}
        self._sums: dict[tuple[int, DerivedScalar], Tensor] = {}
        self._rank_all()

    def _rank_all(self) -> None:
        wanted: dict[tuple[DerivedScalar, PassType], list[int]] = {}
        for index, spec in enumerate(self.specs):
            for _, scalars in spec.groups:
                for scalar in scalars:
                    users = wanted.setdefault((scalar, spec.pass_type), [])
                    if index not in users:
                        users.append(index)
        for (scalar, pass_type), users in wanted.items():
            for layer_index, one_pass in spots_of(self.run, scalar, pass_type):
                self._rank(scalar, layer_index, one_pass, users)

    def _rank(
        self, scalar: DerivedScalar, layer_index: int | None, pass_type: PassType, users: Sequence[int]
    ) -> None:
        values = self._values[scalar, layer_index, pass_type] = scalar_values(
            self.run, scalar, layer_index, pass_type
        )
        reads_place = DERIVED_SCALAR_SHAPES[scalar].place is not None
        ranked: dict[tuple[bool, int | None], tuple[Tensor, Tensor]] = {}
        most = max(self.specs[index].top_and_bottom_k for index in users)
        for index in users:
            spec = self.specs[index]
            total = values.sum(spec.dimensions_to_keep or TOKEN_DIMENSIONS)
            key = (index, scalar)
            self._sums[key] = total if key not in self._sums else self._sums[key] + total
            if is_hidden(spec, layer_index) or (reads_place and pass_type is PassType.BACKWARD):
                continue
            for group in (group for group, scalars in spec.groups if scalar in scalars):
                for largest in (True, False) if group.has_bottom else (True,):
                    how = (largest, spec.token_index)
                    if how not in ranked:
                        ranked[how] = values.top(
                            most, largest, spec.token_index, with_ties=layer_index is not None
                        )
                    ranking = self._best.setdefault((index, group, scalar, largest), _Ranking())
                    ranking.add(*ranked[how], layer_index)
        values.release()

    def nodes(self, index: int) -> list[NodeIndex]:
        """The nodes that any group of spec `index` chose, in first-seen order."""
        spec = self.specs[index]
        found: dict[NodeIndex, None] = {}
        for group, scalars in spec.groups:
            for scalar in scalars:
                for largest in (True, False):
                    ranking = self._best.get((index, group, scalar, largest))
                    if ranking is not None:
                        found |= dict.fromkeys(ranking.best(scalar, spec.top_and_bottom_k, largest))
        return list(found)

    def result(self, index: int, nodes: Sequence[NodeIndex]) -> MultipleTopKResult:
        """Every group's value at the nodes, and the sums."""
        spec = self.specs[index]
        shown = tuple(node for node in nodes if not is_hidden(spec, node.layer_index))
        groups = {}
        for group, scalars in spec.groups:
            sums = {scalar: self._sum(index, scalar) for scalar in scalars}
            groups[group] = GroupResult(as_array(self._node_values(scalars, spec.pass_type, shown)), sums)
        return MultipleTopKResult(shown, groups)

    def _node_values(
        self, scalars: Sequence[DerivedScalar], pass_type: PassType, nodes: Sequence[NodeIndex]
    ) -> Tensor:
        """The group's number at every node [n]: that of its derived scalar for the node's type."""
        by_type = {DERIVED_SCALAR_SHAPES[scalar].node_type: scalar for scalar in scalars}
        found = torch.zeros(len(nodes), dtype=self.run.decoder.dtype, device=self.run.decoder.device)
        for (node_type, layer_index, node_pass), positions in _by_spot(nodes).items():
            if node_type not in by_type:
                continue
            scalar = by_type[node_type]
            computed_pass = pass_type if scalar is DerivedScalar.PREVIOUS_LAYER_RESID_POST_MLP else node_pass
            values = self._values[scalar, layer_index, computed_pass]
            indices = torch.tensor([nodes[one].tensor_indices for one in positions], device=found.device)
            found[positions] = values.at(indices)
        return found

    def _sum(self, index: int, scalar: DerivedScalar) -> LabelledArray:
        keep = self.specs[index].dimensions_to_keep or TOKEN_DIMENSIONS
        kept = tuple(one for one in DERIVED_SCALAR_SHAPES[scalar].dimensions if one in keep)
        return LabelledArray(as_array(self._sums[index, scalar]), kept)


def _by_spot(nodes: Sequence[NodeIndex]) -> dict[tuple[NodeType, int | None, PassType], list[int]]:
    """Positions of the nodes of each type, layer and pass."""
    found: dict[tuple[NodeType, int | None, PassType], list[int]] = {}
    for position, node in enumerate(nodes):
        found.setdefault((node.node_type, node.layer_index, node.pass_type), []).append(position)
    return found


def shown_pass(scalar: DerivedScalar, pass_type: PassType) -> PassType:
    """The pass a node is shown with: only what reads a place has a backward pass of its own."""
    return PassType.FORWARD if DERIVED_SCALAR_SHAPES[scalar].place is None else pass_type


def is_hidden(spec: MultipleTopKSpec, layer_index: int | None) -> bool:
    """Whether a spec leaves the nodes of this layer out."""
    first = spec.first_layer_index
    return first is not None and layer_index is not None and layer_index < first


def as_array(x: Tensor) -> FloatArray:
    """A contiguous numpy array; bfloat16, which numpy lacks, as float32."""
    x = x.detach().to("cpu")
    array: FloatArray = (x.float() if x.dtype == torch.bfloat16 else x).contiguous().numpy()
    return array

"""One derived scalar, gone through layer by layer: its best nodes, its sums, and its numbers to look up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import Dimension, NodeIndex, PassType
from tdb_server.domain.requests import MultipleTopKSpec
from tdb_server.scalars.derived import scalar_values
from tdb_server.scalars.layer_stacks import LayerStack, stack_layers
from tdb_server.scalars.node_ranking import NodeRanking
from tdb_server.scalars.row_run import RowRun
from tdb_server.scalars.token_parts import token_parts

TOKEN_DIMENSIONS = (Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS)
LayerNodes = Mapping[int | None, Sequence[tuple[int, NodeIndex]]]
"""Nodes of one type by layer, each with its position in a result."""


def layers_of(run: RowRun, scalar: DerivedScalar) -> Sequence[int | None]:
    """The layers in which a derived scalar exists."""
    shape = DERIVED_SCALAR_SHAPES[scalar]
    if not shape.is_per_layer:
        return [None]
    if shape.node_type.is_latent:
        return sorted(run.autoencoder_of_node(shape.node_type).layers)
    return range(run.n_layers)


class ScalarPass:
    """What some multiple-top-k specs of one pass want of one derived scalar of a row.

    A place read backward adds its gradients to the sums of its activations, and still ranks the activations;
    that is what the reference answers.
    """

    def __init__(
        self, run: RowRun, scalar: DerivedScalar, pass_type: PassType, specs: Sequence[MultipleTopKSpec]
    ) -> None:
        self._run, self._scalar, self._specs = run, scalar, specs
        self._rankings: dict[tuple[bool, int | None, int | None], NodeRanking] = {}
        self._sums: dict[tuple[Dimension, ...], Tensor] = {}
        self._stacks: dict[PassType, list[LayerStack]] = {}
        reads_place = DERIVED_SCALAR_SHAPES[scalar].place is not None
        if reads_place and pass_type is PassType.BACKWARD:
            self._go_through(PassType.FORWARD, is_ranked=True)
            self._go_through(PassType.BACKWARD, is_ranked=False)
        else:
            self._go_through(pass_type, is_ranked=True)

    def _go_through(self, pass_type: PassType, *, is_ranked: bool) -> None:
        layers = (
            (layer_index, scalar_values(self._run, self._scalar, layer_index, pass_type))
            for layer_index in layers_of(self._run, self._scalar)
        )
        first_layers = [spec.first_layer_index for spec in self._specs if spec.first_layer_index is not None]
        kept = {_kept(spec) for spec in self._specs}
        self._stacks[pass_type] = []
        for stack in stack_layers(layers, first_layers):
            for part in token_parts(stack.values):
                self._run.check_cancelled()
                for keep in kept:
                    self._sums[keep] = part.add_sum(keep, self._sums.get(keep))
                if is_ranked:
                    self._rank(LayerStack(stack.layers, part))
                part.release()
            self._stacks[pass_type].append(stack)

    def _rank(self, stack: LayerStack) -> None:
        k = max(spec.top_and_bottom_k for spec in self._specs)
        orders = {
            (largest, spec.token_index, spec.first_layer_index)
            for spec in self._specs
            if not _is_hidden(spec, stack.layers[0])
            for largest in ((True, False) if self._has_bottom(spec) else (True,))
        }
        for order in orders:
            largest, token_index, _ = order
            ranking = self._rankings.setdefault(order, NodeRanking(self._scalar, largest, token_index, k))
            ranking.add(stack)

    def _has_bottom(self, spec: MultipleTopKSpec) -> bool:
        return any(group.has_bottom for group, scalars in spec.groups if self._scalar in scalars)

    def best(self, spec: MultipleTopKSpec, *, largest: bool) -> list[NodeIndex]:
        """The nodes that one of the specs chooses, from the top or from the bottom, best first."""
        ranking = self._rankings.get((largest, spec.token_index, spec.first_layer_index))
        return [] if ranking is None else ranking.best(spec.top_and_bottom_k)

    def sum(self, spec: MultipleTopKSpec) -> tuple[Tensor, tuple[Dimension, ...]]:
        """The sum that one of the specs wants, over all layers, and the dimensions that are left."""
        keep = _kept(spec)
        kept = tuple(one for one in DERIVED_SCALAR_SHAPES[self._scalar].dimensions if one in keep)
        return self._sums[keep], kept

    def at(self, nodes: LayerNodes, pass_type: PassType) -> tuple[list[int], list[Tensor]]:
        """The numbers of nodes: their positions, and their numbers [n] in parts, in the order of layers."""
        positions: list[int] = []
        numbers: list[Tensor] = []
        for stack in self._stacks[pass_type]:
            found = [
                (position, (place, *node.tensor_indices))
                for place, layer_index in enumerate(stack.layers)
                for position, node in nodes.get(layer_index, ())
            ]
            if found:
                indices = torch.tensor([one for _, one in found], device=self._run.decoder.device)
                numbers.append(stack.values.at(indices))
                positions += [position for position, _ in found]
        return positions, numbers


def _kept(spec: MultipleTopKSpec) -> tuple[Dimension, ...]:
    return spec.dimensions_to_keep or TOKEN_DIMENSIONS


def _is_hidden(spec: MultipleTopKSpec, layer_index: int | None) -> bool:
    """Whether a spec leaves the nodes of this layer out."""
    first = spec.first_layer_index
    return first is not None and layer_index is not None and layer_index < first

"""The best nodes of one derived scalar over all layers, found in the stacks of layers together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.results import FloatArray, IntArray
from tdb_server.scalars.entry_blocks import EntryBlocks, best_entries
from tdb_server.scalars.layer_stacks import LayerStack
from tdb_server.scalars.scalar_values import DenseScalars


@dataclass
class NodeRanking:
    """Ranks a derived scalar's nodes by their numbers.

    Attributes:
        scalar: the derived scalar.
        largest: whether the largest numbers are the best, or the smallest.
        token_index: where given, only nodes at this token are ranked.
        k: how many nodes may be asked for.
    """

    scalar: DerivedScalar
    largest: bool
    token_index: int | None
    k: int
    _layers: list[int | None] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _blocks: list[EntryBlocks] = field(default_factory=list)
    _unlayered: tuple[FloatArray, IntArray] | None = None

    def add(self, stack: LayerStack) -> None:
        """Adds a stack of layers, or the numbers that no layer has."""
        if stack.layers == (None,):
            assert isinstance(stack.values, DenseScalars)
            self._unlayered = stack.values.top(self.k, self.largest, self.token_index)
        else:
            self._blocks.append(stack.values.blocks(self.k, self.largest, self.token_index))
        self._starts.append(len(self._layers))
        self._layers += stack.layers

    def best(self, k: int) -> list[NodeIndex]:
        """The k best nodes, best first, without zeros; of equals, the first by layer and index."""
        values, nodes = (one[:k] for one in self._ordered)
        node_type = DERIVED_SCALAR_SHAPES[self.scalar].node_type
        return [
            NodeIndex(node_type, self._layers[place], tuple(indices))
            for place, *indices in nodes[values != 0].tolist()
        ]

    @cached_property
    def _ordered(self) -> tuple[FloatArray, IntArray]:
        """The best, in order: numbers [n], and places in `_layers` and indices [n, 1 + n_axes]."""
        if self._unlayered is not None:
            return self._unlayered
        values, which, nodes = best_entries(self._blocks, self.k, self.largest)
        nodes[:, 0] += np.array(self._starts)[which]
        order = np.lexsort((*nodes.T[::-1], -values if self.largest else values))
        return values[order], nodes[order]

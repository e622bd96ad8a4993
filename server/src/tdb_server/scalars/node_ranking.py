"""The best nodes of one derived scalar over all layers, merged from the best of each stack of layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.results import FloatArray, IntArray
from tdb_server.scalars.layer_stacks import LayerStack


@dataclass
class NodeRanking:
    """Ranks a derived scalar's nodes by their numbers.

    Attributes:
        scalar: the derived scalar.
        largest: whether the largest numbers are the best, or the smallest.
        token_index: where given, only nodes at this token are ranked.
    """

    scalar: DerivedScalar
    largest: bool
    token_index: int | None
    _layers: list[int | None] = field(default_factory=list)
    _best: list[tuple[int, FloatArray, IntArray]] = field(default_factory=list)

    def add(self, stack: LayerStack, k: int) -> None:
        """Adds the k best of a stack; with layers, also all that equals the last of them."""
        has_layers = stack.layers != (None,)
        found = stack.values.top(k, self.largest, self.token_index, with_ties=has_layers)
        self._best.append((len(self._layers), *found))
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
        """All that was added, in order: numbers [n], and places in `_layers` and indices [n, 1 + n_axes]."""
        values = np.concatenate([values for _, values, _ in self._best])
        nodes = np.concatenate([nodes for _, _, nodes in self._best])
        nodes[:, 0] += np.repeat(
            [start for start, _, _ in self._best], [len(one) for _, one, _ in self._best]
        )
        if self._layers != [None]:
            order = np.lexsort((*nodes.T[::-1], -values if self.largest else values))
            values, nodes = values[order], nodes[order]
        return values, nodes

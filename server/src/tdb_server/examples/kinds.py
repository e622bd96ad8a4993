"""Of which nodes examples are kept, and what the activations of one example are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tdb_server.domain.model_info import ModelInfo, Site
from tdb_server.domain.node import NodeType


@dataclass(frozen=True, slots=True)
class Kind:
    """All nodes of one type.

    An example of a neuron or latent has an activation for each token of its piece. That of a head has one for
    each pair of a token and one at or before it that it reads, row by row: 1 of the first token, 2 of the
    second... Either way they are called cells here.

    Attributes:
        node_type: of neurons, heads, or a dictionary's latents.
        layers: that have such nodes.
        n_nodes: in each layer.
        site: where the dictionary reads, of latents.
    """

    node_type: NodeType
    layers: tuple[int, ...]
    n_nodes: int
    site: Site | None = None

    @property
    def is_of_pairs(self) -> bool:
        """Whether activations are of pairs of tokens."""
        return self.node_type is NodeType.ATTENTION_HEAD

    @property
    def floor(self) -> float:
        """What a peak must exceed: a latent that is not active shows nothing."""
        return -math.inf if self.has_lowest else 0.0

    @property
    def has_lowest(self) -> bool:
        """Whether activations may be negative, so that the lowest say something too."""
        return self.node_type is NodeType.MLP_NEURON

    def n_cells(self, n_tokens: int) -> int:
        """Activations of one example."""
        return n_tokens * (n_tokens + 1) // 2 if self.is_of_pairs else n_tokens


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is kept of every node.

    Attributes:
        k: strongest examples.
        n_lowest: examples with the lowest activations, of neurons.
        n_random: examples taken at random, the same pieces for all nodes.
        context: tokens of a piece, at the most.
    """

    k: int
    n_lowest: int
    n_random: int
    context: int


def kinds_of(info: ModelInfo) -> list[Kind]:
    """Everything that examples can be kept of in a model with its dictionaries."""
    every_layer = tuple(range(info.n_layers))
    return [
        Kind(NodeType.MLP_NEURON, every_layer, info.n_neurons),
        Kind(NodeType.ATTENTION_HEAD, every_layer, info.n_heads),
        *(Kind(one.site.node_type, one.layers, one.n_latents, one.site) for one in info.autoencoders),
    ]


def kept_bytes(kinds: Sequence[Kind], amounts: Amounts, n_bins: int) -> int:
    """What is held in memory of all nodes, random examples included, which are added at the end."""
    total = 0
    for kind in kinds:
        n_kept = amounts.k + (amounts.n_lowest if kind.has_lowest else 0)
        cells = 4 * kind.n_cells(amounts.context)
        # Beside activations: a value and two places of each example, and the counts of a histogram.
        per_node = n_kept * (cells + 4 + 3 * 8) + amounts.n_random * cells + 8 * n_bins
        total += len(kind.layers) * kind.n_nodes * per_node
    return total

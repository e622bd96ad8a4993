"""What was found of one layer's nodes, on its way into a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tdb_server.examples.kinds import Kind


@dataclass(frozen=True, slots=True)
class NodeExamples:
    """Examples of each of n nodes, at most k, in the order in which they are shown.

    Attributes:
        is_filled: which of the k places have one [n, k]; those that have none come last.
        values: activations at the peaks [n, k].
        pieces: of which piece [n, k].
        cells: which of its cells is the peak [n, k].
        activations: of all cells, what follows shorter pieces is of no meaning [n, k, cells].
    """

    is_filled: npt.NDArray[np.bool_]
    values: npt.NDArray[np.float32]
    pieces: npt.NDArray[np.int64]
    cells: npt.NDArray[np.int64]
    activations: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerExamples:
    """All that was found of one layer's nodes.

    Attributes:
        layer: its index.
        top: the strongest examples.
        lowest: those with the lowest activations; None where they are not looked for.
        at_random: pieces taken at random, the same for all nodes.
        counts: activations by the bins of `histogram.py` [n, bins].
    """

    layer: int
    top: NodeExamples
    lowest: NodeExamples | None
    at_random: NodeExamples
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class KindExamples:
    """All that was found of nodes of one type, layer by layer."""

    kind: Kind
    layers: Iterator[LayerExamples]

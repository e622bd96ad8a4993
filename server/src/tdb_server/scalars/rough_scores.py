"""Rough scores of a whole vocabulary along a few directions, each with a bound on its error.

On a CPU, products of 8-bit integers run several times faster than those of floats. For a direction x and a
token's vector w, both as 8-bit integers times a step (x ≈ s p, w ≈ c q), Cauchy and Schwarz say

    | x · w / (s c)  -  p · q |   ≤   ‖x/s - p‖ ‖q‖  +  ‖x/s‖ ‖w/c - q‖

Steps are small where no channel stands out. In trained vocabularies some do: hence the mean of all tokens is
taken off, which moves every score alike, and all is rotated at random (Ashkboos et al. 2024, "QuaRot").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
"""Neighbouring tokens that are looked at together first."""
MAX_DIRECTIONS = 256
"""Directions scored at once: bounds the rough scores, which are [MAX_DIRECTIONS, V]."""
_FILLED_UP = 64
"""Directions are filled up to a multiple of this: for every new shape of a product, machine code is made
first, which takes longer than the product itself."""
_TILE = 8192
"""Tokens scored at once: what comes out is still in the processor's cache when its blocks are looked at."""
_LARGEST = 127
"""Of the 8-bit integers that are used."""
_ROUNDING = 1.001
"""Room for the rounding of the bound's own arithmetic, and of exact scores."""


@dataclass(frozen=True)
class RoughScores:
    """Rough scores along m directions.

    Attributes:
        tiles: the scores, whole numbers, of one tile of tokens after the other [m, n_tile].
        highest: the highest of each block [m, n_blocks].
        lowest: the lowest of each block [m, n_blocks].
        steps: what the numbers count, in each direction's scores less the mean's [m, 1].
        bounds: how many steps a rough score may be off [m, 1].
    """

    tiles: Sequence[Tensor]
    highest: Tensor
    lowest: Tensor
    steps: Tensor
    bounds: Tensor

    def of_blocks(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """The scores in some blocks along some directions: rows and blocks [n] to [n, BLOCK]."""
        tile_of_block = blocks // (_TILE // BLOCK)
        order = tile_of_block.argsort()
        counts = tile_of_block.bincount(minlength=len(self.tiles)).tolist()
        within = blocks - tile_of_block * (_TILE // BLOCK)
        found = []
        for tile, chosen in zip(self.tiles, torch.split(order, counts), strict=True):
            places = rows[chosen] * (tile.shape[1] // BLOCK) + within[chosen]
            found.append(tile.view(-1, BLOCK).index_select(0, places))
        return torch.cat(found)[order.argsort()]


class RoughVocabulary:
    """A copy of a vocabulary in 8 bits."""

    def __init__(self, vectors: Tensor) -> None:
        """Takes the vectors of the tokens [n, d]; costs about as much as scoring 3 d directions."""
        n_tokens, d_model = vectors.shape
        self.mean = vectors.mean(dim=0)
        normal = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))
        self.rotation = torch.linalg.qr(normal).Q
        largest = [part.abs().amax(dim=0) for _, part in self._rotated_parts(vectors)]
        self.steps = _step(torch.stack(largest).amax(dim=0))  # [d], one for each channel
        self.n_blocks = -(-n_tokens // BLOCK)
        quantized = torch.empty(self.n_blocks * BLOCK, d_model, dtype=torch.int8)
        self._largest_norm = self._largest_error = torch.zeros(())
        for start, part in self._rotated_parts(vectors):
            exact = part / self.steps
            rounded = exact.round()
            quantized[start : start + len(part)] = rounded
            self._largest_norm = self._largest_norm.maximum(rounded.norm(dim=1).amax())
            self._largest_error = self._largest_error.maximum((exact - rounded).norm(dim=1).amax())
        quantized[n_tokens:] = quantized[n_tokens - 1]  # fills up the last block
        self._tiles = [torch.ops.onednn.qlinear_prepack(tile, None) for tile in torch.split(quantized, _TILE)]

    def _rotated_parts(self, vectors: Tensor, n_rows: int = 4096) -> Iterator[tuple[int, Tensor]]:
        """The vocabulary centred and rotated, in parts: their first rows, and they."""
        for start in range(0, len(vectors), n_rows):
            yield start, (vectors[start : start + n_rows] - self.mean) @ self.rotation

    def scores(self, directions: Tensor) -> RoughScores:
        """Rough scores of every token along at most MAX_DIRECTIONS directions [m, d]."""
        rotated = directions @ self.rotation * self.steps
        steps = _step(rotated.abs().amax(dim=1, keepdim=True))
        exact = rotated / steps
        rounded = exact.round()
        of_direction = (exact - rounded).norm(dim=1, keepdim=True) * self._largest_norm
        of_vocabulary = exact.norm(dim=1, keepdim=True) * self._largest_error
        bounds = (of_direction + of_vocabulary) * _ROUNDING
        filled_up = F.pad(rounded.to(torch.int8), (0, 0, 0, -len(directions) % _FILLED_UP))
        tiles, highest, lowest = [], [], []
        for packed in self._tiles:
            tiles.append(_product(filled_up, packed))
            blocks = tiles[-1][: len(directions)].view(len(directions), -1, BLOCK)
            highest.append(blocks.amax(dim=2))
            lowest.append(blocks.amin(dim=2))
        return RoughScores(tiles, torch.cat(highest, dim=1), torch.cat(lowest, dim=1), steps, bounds)


def _step(largest: Tensor) -> Tensor:
    """The step with which numbers up to `largest` become 8-bit integers."""
    return largest.clamp(min=1e-30) / _LARGEST


def _product(directions: Tensor, packed: Tensor) -> Tensor:
    """Directions [m, d] times a packed tile of the vocabulary [d, n], all in 8 bits: whole numbers [m, n].

    As float32: these sums are exact up to 2**24, and beyond that well within the bounds' room.
    """
    n_tokens = packed.shape[1]
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        directions,
        1.0,
        0,
        packed,
        torch.ones(n_tokens),
        torch.zeros(n_tokens, dtype=torch.int32),
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )
    return found

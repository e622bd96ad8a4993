"""Rough scores of a whole vocabulary along a few directions, each with a bound on its error.

On a CPU, products of 8-bit integers run several times faster than those of floats. For a direction x and a
token's vector w, both as 8-bit integers times a step (x ≈ s p, w ≈ c q), Cauchy and Schwarz say

    | x · w / (s c)  -  p · q |   ≤   ‖x/s - p‖ ‖q‖  +  ‖x/s‖ ‖w/c - q‖

Steps are small where no channel stands out. In trained vocabularies some do: hence the mean of all tokens is
taken off, which moves every score alike, and all is rotated at random (Ashkboos et al. 2024, "QuaRot").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
"""Neighbouring tokens that are looked at together first."""
MAX_DIRECTIONS = 64
"""Directions scored at once: bounds the rough scores, which are [MAX_DIRECTIONS, V].

Fewer are filled up to as many: for every new shape of a product, machine code is made first, which takes
longer than the product itself.
"""
_LARGEST = 127
"""Of the 8-bit integers that are used."""
_ROUNDING = 1.001
"""Room for the rounding of the bound's own arithmetic, and of exact scores."""


@dataclass(frozen=True)
class RoughScores:
    """Rough scores along m directions, valid until the next ones are computed.

    Attributes:
        blocks: the scores as integers [m, n_blocks, BLOCK].
        highest: the highest of each block [m, n_blocks].
        lowest: the lowest of each block [m, n_blocks].
        steps: what the integers count, in each direction's scores less the mean's [m, 1].
        bounds: how many steps a rough score may be off [m, 1].
    """

    blocks: Tensor
    highest: Tensor
    lowest: Tensor
    steps: Tensor
    bounds: Tensor

    def of_blocks(self, rows: Tensor, blocks: Tensor) -> Tensor:
        """The scores in some blocks along some directions: rows and blocks [...] to [..., BLOCK]."""
        chosen = rows * self.blocks.shape[1] + blocks
        return self.blocks.view(-1, BLOCK).index_select(0, chosen.flatten()).view(*chosen.shape, BLOCK)


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
        self._quantized = quantized.T
        self._products = torch.empty(MAX_DIRECTIONS, len(quantized), dtype=torch.int32)

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
        filled_up = F.pad(rounded.to(torch.int8), (0, 0, 0, MAX_DIRECTIONS - len(directions)))
        torch._int_mm(filled_up, self._quantized, out=self._products)  # noqa: SLF001, torch has no other
        blocks = self._products[: len(directions)].view(len(directions), -1, BLOCK)
        bounds = (of_direction + of_vocabulary) * _ROUNDING
        return RoughScores(blocks, blocks.amax(dim=2), blocks.amin(dim=2), steps, bounds)


def _step(largest: Tensor) -> Tensor:
    """The step with which numbers up to `largest` become 8-bit integers."""
    return largest.clamp(min=1e-30) / _LARGEST

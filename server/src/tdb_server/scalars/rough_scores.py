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
"""Tokens that are looked at together first."""
N_BANDS = 16
"""Parts of the vocabulary, by the length of the vectors, each with bounds of its own."""
MAX_DIRECTIONS = 512
"""Directions scored at once: bounds the rough scores, which are [V, MAX_DIRECTIONS]."""
LARGEST = 127
"""Of the 8-bit integers that are used."""
_FILLED_UP = 64
"""Directions are filled up to a multiple of this: for every new shape of a product, machine code is made
first, which takes longer than the product itself."""
_N_SAMPLED = 512
"""Tokens whose scores say how far those of all spread."""
_SPREAD = 8
"""Standard deviations that the rough scores' range has room for at either side."""
_ROUNDING = 1.001
"""Room for the rounding of the bound's own arithmetic, and of exact scores."""


@dataclass(frozen=True)
class RoughScores:
    """Rough scores along m directions, in 8 bits; what does not fit is told as the largest that does.

    Attributes:
        scores: the scores [BLOCK, n_blocks, m or more], of tokens in the order of `RoughVocabulary.order`;
            what fills up the product comes after the m directions.
        highest: the highest of each block [n_blocks, m].
        lowest: the lowest of each block [n_blocks, m].
        steps: what the numbers count, in each direction's scores less the mean's [m].
        bounds: how many steps a rough score may be off in each band [N_BANDS, m]; where nothing is known, not
            a finite number.
    """

    scores: Tensor
    highest: Tensor
    lowest: Tensor
    steps: Tensor
    bounds: Tensor


class RoughVocabulary:
    """A copy of a vocabulary in 8 bits.

    Attributes:
        order: which token is the j-th of block b [BLOCK, n_blocks]; -1 where a block is filled up with zeros.
            Blocks go from the longest vector to the shortest, the same number of them to each band. Tokens of
            a block do not stand together, because rows are compared faster than neighbours.
        mean: of the tokens' vectors [d].
    """

    def __init__(self, vectors: Tensor) -> None:
        """Takes the vectors of the tokens [n, d]; costs about as much as scoring 3 d directions."""
        n_tokens, d_model = vectors.shape
        self.n_blocks = -(-n_tokens // (BLOCK * N_BANDS)) * N_BANDS
        self.mean = vectors.mean(dim=0)
        by_length = (vectors - self.mean).norm(dim=1).argsort(descending=True)
        filled_up = F.pad(by_length, (0, self.n_blocks * BLOCK - n_tokens), value=-1)
        self.order = filled_up.view(self.n_blocks, BLOCK).T.contiguous()
        normal = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))
        self.rotation = torch.linalg.qr(normal).Q
        largest = [part.abs().amax(dim=0) for part in self._rotated_parts(vectors)]
        self.steps = _step(torch.stack(largest).amax(dim=0))  # [d], one for each channel
        parts, norms, errors = [], [], []
        for part in self._rotated_parts(vectors):
            exact = part / self.steps
            rounded = exact.round()
            parts.append(rounded.to(torch.int8))
            norms.append(rounded.norm(dim=1))
            errors.append((exact - rounded).norm(dim=1))
        self._quantized = torch.cat(parts)
        bands = BLOCK, N_BANDS, -1
        self._largest_norms = torch.cat(norms).view(bands).amax(dim=(0, 2))  # [N_BANDS]
        self._largest_errors = torch.cat(errors).view(bands).amax(dim=(0, 2))
        self._sampled = self._quantized[:: -(-n_tokens // _N_SAMPLED)].contiguous()

    def _rotated_parts(self, vectors: Tensor, n_rows: int = 4096) -> Iterator[Tensor]:
        """The vocabulary in its order, centred and rotated, in parts."""
        for tokens in torch.split(self.order.flatten(), n_rows):
            centred = (vectors[tokens] - self.mean).masked_fill(tokens[:, None] < 0, 0)
            yield centred @ self.rotation

    def scores(self, directions: Tensor) -> RoughScores:
        """Rough scores of every token along at most MAX_DIRECTIONS directions [m, d]."""
        rotated = directions @ self.rotation * self.steps
        steps = _step(rotated.abs().amax(dim=1))
        exact = rotated / steps[:, None]
        rounded = exact.round()
        of_direction = (exact - rounded).norm(dim=1) * self._largest_norms[:, None]  # [N_BANDS, m]
        of_vocabulary = exact.norm(dim=1) * self._largest_errors[:, None]
        filled_up = F.pad(rounded.to(torch.int8), (0, 0, 0, -len(directions) % _FILLED_UP))
        packed = torch.ops.onednn.qlinear_prepack(filled_up, None)
        sampled = _product(self._sampled, packed, torch.ones(len(filled_up)), torch.float32)
        coarser = _step(sampled.std(dim=0) * _SPREAD)  # [m], and what was filled up
        scores = _product(self._quantized, packed, 1 / coarser, torch.int8).view(BLOCK, self.n_blocks, -1)
        highest, lowest = scores.amax(dim=0), scores.amin(dim=0)
        m = len(directions)
        coarser = coarser[:m]
        return RoughScores(
            scores,
            highest[:, :m],
            lowest[:, :m],
            steps * coarser,
            ((of_direction + of_vocabulary) / coarser + 0.5) * _ROUNDING,
        )


def _step(largest: Tensor) -> Tensor:
    """The step with which numbers up to `largest` become 8-bit integers."""
    return largest.clamp(min=1e-30) / LARGEST


def _product(tokens: Tensor, directions: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens [n, d] times packed directions [d, m], all in 8 bits, to scaled scores [n, m].

    As integers they are rounded, and cut off where they do not fit. As float32 they are exact up to 2**24,
    and beyond that well within the bounds' room.
    """
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        tokens, 1.0, 0, directions, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return found

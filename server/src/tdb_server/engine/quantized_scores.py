"""Scores of a whole vocabulary along a few directions in 8-bit integers, each with a bound on its error.

On CPUs that have a kernel for them, products of 8-bit integers run several times faster than those of floats.
For a direction x and a token's vector w, both as 8-bit integers times a step (x ≈ s p, w ≈ c q), the
Cauchy-Schwarz inequality says

    | x · w / (s c)  -  p · q |   ≤   ‖x/s - p‖ ‖q‖  +  ‖x/s‖ ‖w/c - q‖

Steps are small where no channel stands out. In trained vocabularies some do: hence the mean of all tokens is
taken off, which moves every score alike, and all is rotated at random (Ashkboos et al. 2024, "QuaRot").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32
"""Tokens that are looked at together first."""
N_BANDS = 16
"""Parts of the vocabulary, by the length of the vectors, each with bounds of its own."""
MAX_DIRECTIONS = 512
"""Directions scored at once: bounds the quantized scores, which are [V, MAX_DIRECTIONS]."""
LARGEST = 127
"""Of the 8-bit integers that are used."""
PADDED_TO = 64
"""Directions are padded to a multiple of this: for every new shape of a product, machine code is made first,
which takes longer than the product itself."""
_ZERO = 128
"""The byte that stands for 0 in the vocabulary. VNNI multiplies unsigned with signed bytes; for signed with
signed, oneDNN has only a plain loop on some processors that have VNNI."""
_N_SAMPLED = 512
"""Tokens whose scores say how far those of all spread."""
_SPREAD = 8
"""Standard deviations that the quantized scores' range has room for at either side."""
_ROUNDING = 1.001
"""Room for the rounding of the bound's own arithmetic, and of exact scores."""


Int8Product = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]
"""A way to compute what `plain_int8_product` computes."""


def plain_int8_product(tokens: Tensor, directions: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Products of tokens and directions, scaled.

    Args:
        tokens: bytes [n, d], of which 128 stands for 0.
        directions: 8-bit integers [m, d].
        scales: what the products of each direction are multiplied with [m].
        dtype: of the result. As int8, products are rounded, and cut off where they do not fit.

    Returns:
        The scaled products [n, m].
    """
    scaled = ((tokens.double() - _ZERO) @ directions.T.double()) * scales
    return scaled.round().clamp(-LARGEST - 1, LARGEST).to(dtype) if dtype == torch.int8 else scaled.to(dtype)


def onednn_int8_product(tokens: Tensor, directions: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The same, by oneDNN. As float32 it is exact up to 2**24, and beyond that well within the bounds' room.

    Whether it is right and fast on this processor is for `ranking_trial` to find out.
    """
    packed = torch.ops.onednn.qlinear_prepack(directions, None)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        tokens, 1.0, _ZERO, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return found


@dataclass(frozen=True)
class QuantizedScores:
    """Scores along m directions in 8 bits; what does not fit is told as the largest that does.

    Attributes:
        scores: the scores [BLOCK, n_blocks, m or more], of tokens in the order of `Int8Vocabulary.order`;
            what pads the product comes after the m directions.
        highest: the highest of each block [n_blocks, m].
        lowest: the lowest of each block [n_blocks, m].
        steps: what the numbers count, in each direction's scores less the mean's [m].
        bounds: how many steps a score may be off in each band [N_BANDS, m]; where nothing is known, not a
            finite number.
    """

    scores: Tensor
    highest: Tensor
    lowest: Tensor
    steps: Tensor
    bounds: Tensor


class Int8Vocabulary:
    """A copy of a vocabulary in 8 bits.

    Attributes:
        order: which token is the j-th of block b [BLOCK, n_blocks]; -1 where a block is padded with zeros.
            Blocks go from the longest vector to the shortest, the same number of them to each band. Tokens of
            a block do not stand together, because rows are compared faster than neighbours.
        mean: of the tokens' vectors [d].
    """

    def __init__(self, vectors: Tensor, product: Int8Product = onednn_int8_product) -> None:
        """Takes the vectors of the tokens [n, d]; costs about as much as scoring 3 d directions."""
        self._product = product
        n_tokens, d_model = vectors.shape
        self.n_blocks = -(-n_tokens // (BLOCK * N_BANDS)) * N_BANDS
        self.mean = vectors.mean(dim=0)
        by_length = (vectors - self.mean).norm(dim=1).argsort(descending=True)
        padded = F.pad(by_length, (0, self.n_blocks * BLOCK - n_tokens), value=-1)
        self.order = padded.view(self.n_blocks, BLOCK).T.contiguous()
        normal = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))
        self.rotation = torch.linalg.qr(normal).Q
        largest = [part.abs().amax(dim=0) for part in self._rotated_parts(vectors)]
        self.steps = _step(torch.stack(largest).amax(dim=0))  # [d], one for each channel
        parts, norms, errors = [], [], []
        for part in self._rotated_parts(vectors):
            exact = part / self.steps
            rounded = exact.round()
            parts.append((rounded + _ZERO).to(torch.uint8))
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

    def scores(self, directions: Tensor) -> QuantizedScores:
        """Scores of every token along at most MAX_DIRECTIONS directions [m, d]."""
        rotated = directions @ self.rotation * self.steps
        steps = _step(rotated.abs().amax(dim=1))
        exact = rotated / steps[:, None]
        rounded = exact.round()
        of_direction = (exact - rounded).norm(dim=1) * self._largest_norms[:, None]  # [N_BANDS, m]
        of_vocabulary = exact.norm(dim=1) * self._largest_errors[:, None]
        padded = F.pad(rounded.to(torch.int8), (0, 0, 0, -len(directions) % PADDED_TO))
        sampled = self._product(self._sampled, padded, torch.ones(len(padded)), torch.float32)
        coarser = _step(sampled.std(dim=0) * _SPREAD)  # [m], and what was padded
        scores = self._product(self._quantized, padded, 1 / coarser, torch.int8)
        scores = scores.view(BLOCK, self.n_blocks, -1)
        highest, lowest = scores.amax(dim=0), scores.amin(dim=0)
        m = len(directions)
        coarser = coarser[:m]
        return QuantizedScores(
            scores,
            highest[:, :m],
            lowest[:, :m],
            steps * coarser,
            ((of_direction + of_vocabulary) / coarser + 0.5) * _ROUNDING,
        )


def _step(largest: Tensor) -> Tensor:
    """The step with which numbers up to `largest` become 8-bit integers."""
    return largest.clamp(min=1e-30) / LARGEST

"""Activations counted by their size, in bins that are the same for every node.

Of every power of two there are two bins, `[2^e, 1.5 * 2^e)` and `[1.5 * 2^e, 2^(e+1))`, on both sides of
zero. Exact zeros have a place of their own. So the bin follows from the upper ten bits of a float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_FIRST_EXPONENT, _LAST_EXPONENT = -8, 11
_PER_SIDE = 2 * (_LAST_EXPONENT - _FIRST_EXPONENT + 1)
ZERO = _PER_SIDE + 1
"""The cell of exact zeros: before it are negative ones, lowest first, behind it positive ones."""
N_BINS = 2 * ZERO + 1
NOT_FINITE = N_BINS
"""A cell behind all others, for what is no number. There should be none."""
UPPER_BITS = 22
"""By how many bits a float32, read as an integer, is shifted for its place in `cells_by_upper_bits`."""
N_UPPER_BITS = 1024
"""How many values the bits that are left have."""


def cells_by_upper_bits() -> npt.NDArray[np.int32]:
    """The cell of a float32 by its sign, exponent and first bit of mantissa: [1024]."""
    code = np.arange(N_UPPER_BITS)
    magnitude = code & 511
    step = magnitude - 2 * (127 + _FIRST_EXPONENT)
    distance = 1 + np.clip(step + 1, 0, _PER_SIDE)
    cells = np.where(magnitude == 0, ZERO, ZERO + np.where(code > 511, -distance, distance))
    return np.where(magnitude >= 510, NOT_FINITE, cells).astype(np.int32)


def edges() -> list[float]:
    """Between which values the bins lie, zeros left out: one more than bins.

    What lies beyond the first and the last is counted in the outermost.
    """
    upward = [
        factor * 2.0**exponent
        for exponent in range(_FIRST_EXPONENT, _LAST_EXPONENT + 1)
        for factor in (1.0, 1.5)
    ]
    upward.append(2.0 ** (_LAST_EXPONENT + 1))
    return [*(-one for one in reversed(upward)), 0.0, *upward]


def without_zeros(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The counts that `edges` are the borders of, from those of all cells."""
    return np.delete(counts, ZERO)

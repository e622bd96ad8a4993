"""Numbers as they are sent: short enough to read, and none that JSON has no word for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from tdb_client.results import FloatArray

Number = float | None
"""A number; None where it is not finite or not known."""

DIGITS = 4
"""Of pictures; what is shown as text may need more."""

EXACT_POWER = 22
"""Of ten: the largest that a double holds exactly."""


def rounded(numbers: FloatArray, digits: int = DIGITS) -> list[Number]:
    """Numbers [n] to so many digits that count; None for those that are not finite."""
    values = np.asarray(numbers, np.float64)
    finite = np.isfinite(values)
    sizes = np.where(finite & (values != 0), np.abs(values), 1.0)
    exponents = (digits - 1 - np.floor(np.log10(sizes))).astype(int)
    # Powers of ten up to this are exact, so that numbers end where they are meant to.
    is_exact = np.abs(exponents) <= EXACT_POWER
    factors = 10.0 ** np.minimum(np.abs(exponents), EXACT_POWER)
    with np.errstate(all="ignore"):
        large = np.rint(values / factors) * factors
        small = np.rint(values * factors) / factors
    found: list[Number] = np.where(exponents < 0, large, small).tolist()
    for place in np.flatnonzero(~is_exact):
        # What rounds up to no number any more stays as it is.
        near = float(f"{values[place]:.{digits}g}")
        found[place] = near if math.isfinite(near) else float(values[place])
    for place in np.flatnonzero(~finite):
        found[place] = None
    return found


def rounded_rows(rows: Sequence[FloatArray], digits: int = DIGITS) -> list[list[Number]]:
    """Many short rows of numbers, whose lengths differ, as `rounded` one by one, but faster."""
    if not rows:
        return []
    numbers = rounded(np.concatenate(rows), digits)
    ends = accumulate((len(row) for row in rows), initial=0)
    return [numbers[start:end] for start, end in pairwise(ends)]


def finite(number: float | None) -> Number:
    """A number as it is; None where it is not finite."""
    return number if number is not None and math.isfinite(number) else None


def rounded_causal_rows(pairs: FloatArray) -> Iterator[list[Number]]:
    """Of numbers per pair of tokens [T, T] a row for each attending token, up to itself."""
    return (rounded(row[: place + 1]) for place, row in enumerate(pairs))

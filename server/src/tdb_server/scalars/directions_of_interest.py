"""Directions of interest of a batch's rows, and their products with layers' output weights.

A row's direction is mostly zero but at one token. Its product with a layer's weights is then that of a vector
with a matrix, which takes as long as to read the matrix; all rows together take no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

MAX_TOGETHER = 64
"""Directions that are multiplied together. More of them take longer than to read the weights, and all their
products would have to be kept until the last row has asked."""


class DirectionsOfInterest:
    """The direction of each row of a batch.

    Attributes:
        rows: each row's direction [T, d].
        tokens: the tokens at which each is not zero [n].
        at_tokens: each at those tokens [n, d].
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = rows
        self.tokens = [direction.abs().amax(dim=-1).nonzero()[:, 0] for direction in rows]
        self.at_tokens = [direction[tokens] for direction, tokens in zip(rows, self.tokens, strict=True)]
        self._products: dict[int, Sequence[Tensor]] = {}

    @cached_property
    def _together(self) -> Tensor:
        return torch.cat(self.at_tokens)

    def times(self, row_index: int, weight: Tensor) -> Tensor:
        """A row's direction, at its tokens, times weights of the model [d, m]: [n, m]."""
        if len(self._together) > MAX_TOGETHER:
            return self.at_tokens[row_index] @ weight
        key = weight.data_ptr()
        if key not in self._products:
            sizes = [len(one) for one in self.at_tokens]
            self._products[key] = torch.split(self._together @ weight, sizes)
        return self._products[key][row_index]

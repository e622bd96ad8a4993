"""Directions of interest: where they are not zero, and their products with weights, made together."""

from __future__ import annotations

import pytest
import torch
from tdb_server.scalars import directions_of_interest
from tdb_server.scalars.directions_of_interest import DirectionsOfInterest
from torch import Tensor

D_MODEL, N_OUTPUTS = 6, 4


def direction(n_tokens: int, *tokens: int) -> Tensor:
    """Not zero at some tokens."""
    found = torch.zeros(n_tokens, D_MODEL)
    for token in tokens:
        found[token] = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(token))
    return found


ROWS = (direction(5, 4), direction(3), direction(7, 0, 2, 6))
"""At the last token, nowhere, and at several tokens."""


def test_tokens_are_those_where_it_is_not_zero() -> None:
    found = DirectionsOfInterest(ROWS)
    assert [one.tolist() for one in found.tokens] == [[4], [], [0, 2, 6]]
    for row, tokens, at_tokens in zip(ROWS, found.tokens, found.at_tokens, strict=True):
        torch.testing.assert_close(at_tokens, row[tokens], rtol=0, atol=0)


@pytest.mark.parametrize("max_together", [64, 3])
def test_products_are_each_rows_own(monkeypatch: pytest.MonkeyPatch, max_together: int) -> None:
    monkeypatch.setattr(directions_of_interest, "MAX_TOGETHER", max_together)
    found = DirectionsOfInterest(ROWS)
    for seed in range(2):
        weight = torch.randn(D_MODEL, N_OUTPUTS, generator=torch.Generator().manual_seed(seed))
        for index, row in enumerate(ROWS):
            torch.testing.assert_close(found.times(index, weight), row[found.tokens[index]] @ weight)

"""Cells of a batch tensor: what an ablation sets, and what it does to gradients."""

from __future__ import annotations

import pytest
import torch
from tdb_server.domain.place import Place
from tdb_server.domain.requests import ActivationIndex
from tdb_server.scalars.cells import Cells, ablate, batch_cells, override_gradient
from torch import Tensor

N_ROWS, N_TOKENS, N_HEADS, WIDTH = 3, 5, 4, 6
ROW, ROW_TOKENS = 1, 3
"""The row that is ablated is shorter than the batch, whose last two tokens are its padding."""


def mask(window: int | None = None) -> Tensor:
    ones = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool)
    return ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)


def cells_set(
    place: Place, indices: tuple[int | None, ...], shape: tuple[int, ...], window: int | None = None
) -> set[tuple[int, ...]]:
    """Where a zero tensor of a batch is no longer zero."""
    x = torch.zeros(shape)
    index = ActivationIndex(place, 0, indices)
    batch_cells(index, 7.0, ROW, ROW_TOKENS, mask(window)).set(x)
    assert set(x[x != 0].tolist()) <= {7.0}
    return {tuple(one) for one in x.nonzero().tolist()}


@pytest.mark.parametrize("token", [None, 0, 2])
@pytest.mark.parametrize("channel", [None, 4])
def test_places_by_token(token: int | None, channel: int | None) -> None:
    tokens = range(ROW_TOKENS) if token is None else [token]
    channels = range(WIDTH) if channel is None else [channel]
    found = cells_set(Place.MLP_POST_ACT, (token, channel), (N_ROWS, N_TOKENS, WIDTH))
    assert found == {(ROW, t, c) for t in tokens for c in channels}


@pytest.mark.parametrize("token", [None, 2])
@pytest.mark.parametrize("head", [None, 3])
@pytest.mark.parametrize("channel", [None, 5])
def test_places_by_head(token: int | None, head: int | None, channel: int | None) -> None:
    """Clients index token first; inside, heads come first."""
    tokens = range(ROW_TOKENS) if token is None else [token]
    heads = range(N_HEADS) if head is None else [head]
    channels = range(WIDTH) if channel is None else [channel]
    found = cells_set(Place.ATTN_V, (token, head, channel), (N_ROWS, N_HEADS, N_TOKENS, WIDTH))
    assert found == {(ROW, h, t, c) for h in heads for t in tokens for c in channels}


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("query", [None, 0, 2])
@pytest.mark.parametrize("key", [None, 0, 1])
@pytest.mark.parametrize("head", [None, 3])
def test_places_by_token_pair(
    query: int | None, key: int | None, head: int | None, window: int | None
) -> None:
    """Only what attention sees is set: nothing to the right of the query, nothing outside the window."""
    queries = range(ROW_TOKENS) if query is None else [query]
    keys = range(ROW_TOKENS) if key is None else [key]
    heads = range(N_HEADS) if head is None else [head]
    seen = [(q, k) for q in queries for k in keys if k <= q and (window is None or q - k < window)]
    shape = (N_ROWS, N_HEADS, N_TOKENS, N_TOKENS)
    found = cells_set(Place.ATTN_QK_PROBS, (query, key, head), shape, window)
    assert found == {(ROW, h, q, k) for h in heads for q, k in seen}


def test_ablating_changes_a_copy_and_stops_the_gradient_at_the_cells() -> None:
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    altered = ablate(x, [Cells((0, 1), 9.0), Cells((1, slice(None)), -1.0)])
    assert altered.tolist() == [[0.0, 9.0, 2.0], [-1.0, -1.0, -1.0]]
    assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    altered.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_without_cells_nothing_is_copied() -> None:
    x = torch.ones(2, requires_grad=True)
    assert ablate(x, []) is x
    assert override_gradient(x, []) is x


def test_overriding_keeps_the_value_and_sets_the_gradient() -> None:
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    same = override_gradient(x, [Cells((0, slice(None)), 0.0), Cells((1, 2), 5.0)])
    assert torch.equal(same, x)
    (same * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 0.0, 0.0], [2.0, 2.0, 5.0]]

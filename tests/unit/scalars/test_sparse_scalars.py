"""Sparse numbers of a layer's latents against the dense tensor they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.domain.node import Dimension
from tdb_server.scalars.entry_blocks import best_entries
from tdb_server.scalars.latents import SparseLatents
from tdb_server.scalars.scalar_values import SparseScalars
from torch import Tensor

TOKENS, LATENTS = Dimension.SEQUENCE_TOKENS, Dimension.AUTOENCODER_LATENTS
N_TOKENS, N_LATENTS = 4, 6


def example(share_active: float, seed: int = 0) -> tuple[SparseScalars, Tensor]:
    """Numbers of the active latents, and all of them [T, n]: zero where inactive."""
    generator = torch.Generator().manual_seed(seed)
    is_active = torch.rand(N_TOKENS, N_LATENTS, generator=generator) < share_active
    dense = torch.randn(N_TOKENS, N_LATENTS, generator=generator) * is_active
    coordinates = is_active.nonzero()
    active = SparseLatents(coordinates, torch.ones(len(coordinates)), (N_TOKENS, N_LATENTS))
    return SparseScalars(active, dense[coordinates.unbind(1)]), dense


@pytest.mark.parametrize("share_active", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("token_index", [None, 0, 3])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_best_entries(share_active: float, largest: bool, token_index: int | None, k: int) -> None:
    """Inactive latents take their places among the best k as zeros, and are then left out."""
    scalars, dense = example(share_active)
    values, _, nodes = best_entries([scalars.blocks(k, largest, token_index)], k, largest)
    considered = dense if token_index is None else dense[token_index]
    expected = considered.flatten().sort(descending=largest).values[:k]
    assert np.array_equal(np.sort(values), expected[expected != 0].sort().values)
    assert len(values) == 0 or np.array_equal(dense[tuple(nodes.T)], values)
    if token_index is not None:
        assert (nodes[:, 0] == token_index).all()


@pytest.mark.parametrize("share_active", [0.0, 0.3, 1.0])
def test_at(share_active: float) -> None:
    scalars, dense = example(share_active)
    nodes = torch.cartesian_prod(torch.arange(N_TOKENS), torch.arange(N_LATENTS)).flip(0)
    assert torch.equal(scalars.at(nodes), dense.flatten().flip(0))


@pytest.mark.parametrize("share_active", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("keep", "summed_away"), [((), (0, 1)), ((TOKENS,), (1,)), ((LATENTS,), (0,)), ((TOKENS, LATENTS), None)]
)
def test_sum(share_active: float, keep: tuple[Dimension, ...], summed_away: tuple[int, ...] | None) -> None:
    scalars, dense = example(share_active)
    expected = dense if summed_away is None else dense.sum(dim=summed_away)
    torch.testing.assert_close(scalars.add_sum(keep), expected)

"""The shortcuts taken to rank a few of very many numbers find what sorting all of them finds."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.scalars.best_entries import top_k_entries, top_k_per_row
from torch import Tensor

from tests.property.requests import examples

SIZES = st.sampled_from([1, 2, 7, 63, 64, 65, 640, 8191, 8193, 20_001])


def random_numbers(shape: tuple[int, ...], seed: int, n_values: int | None) -> Tensor:
    """Normal numbers; with `n_values`, so many different ones, zero among them, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    if n_values is None:
        return torch.randn(*shape, generator=generator)
    return torch.randint(-(n_values // 2), n_values // 2 + 1, shape, generator=generator).float()


TIES = st.sampled_from([None, 2, 6, 1000])


@examples(150)
@given(
    n_rows=st.sampled_from([1, 3]),
    n_columns=SIZES,
    k=st.sampled_from([1, 2, 10, 100]),
    largest=st.booleans(),
    n_values=TIES,
    block=st.sampled_from([None, 1, 4, 64]),
    seed=st.integers(0, 1000),
)
def test_top_k_per_row(
    n_rows: int, n_columns: int, k: int, largest: bool, n_values: int | None, block: int | None, seed: int
) -> None:
    k = min(k, n_columns)
    scores = random_numbers((n_rows, n_columns), seed, n_values)
    values, indices = top_k_per_row(scores, k, largest, block)
    expected = scores.sort(dim=1, descending=largest).values[:, :k]
    assert torch.equal(values, expected)
    assert torch.equal(scores.gather(1, indices), expected)
    assert all(len(set(row)) == k for row in indices.tolist())


@examples(200)
@given(
    n_columns=st.sampled_from([1, 5, 64, 300]),
    n_rows=st.sampled_from([1, 2, 40, 200]),
    k=st.sampled_from([1, 3, 12, 50, 100_000]),
    largest=st.booleans(),
    n_values=TIES,
    seed=st.integers(0, 1000),
)
def test_top_k_entries(
    n_columns: int, n_rows: int, k: int, largest: bool, n_values: int | None, seed: int
) -> None:
    numbers = random_numbers((2, n_rows, n_columns), seed, n_values)
    values, flat = top_k_entries(numbers, k, largest, with_ties=False)
    expected = numbers.flatten().sort(descending=largest).values[:k].numpy()
    assert np.array_equal(values, expected)
    assert np.array_equal(numbers.flatten().numpy()[flat], expected)
    assert len(set(flat.tolist())) == len(expected)


@examples(200)
@given(
    n_columns=st.sampled_from([1, 5, 64, 300]),
    n_rows=st.sampled_from([1, 2, 40, 200]),
    k=st.sampled_from([1, 3, 12, 50, 100_000]),
    largest=st.booleans(),
    n_values=TIES,
    seed=st.integers(0, 1000),
)
def test_top_k_entries_with_ties(
    n_columns: int, n_rows: int, k: int, largest: bool, n_values: int | None, seed: int
) -> None:
    """All that equals the k-th is there, so that whoever merges lists can choose; zeros never matter."""
    numbers = random_numbers((n_rows, n_columns), seed, n_values)
    values, flat = top_k_entries(numbers, k, largest, with_ties=True)
    everything = numbers.flatten().sort(descending=largest).values.numpy()
    last = everything[min(k, len(everything)) - 1]
    if last == 0:
        assert np.array_equal(values, everything[:k])
    else:
        is_listed = everything >= last if largest else everything <= last
        assert np.array_equal(values, everything[is_listed])
    assert np.array_equal(numbers.flatten().numpy()[flat], values)
    assert len(set(flat.tolist())) == len(values)

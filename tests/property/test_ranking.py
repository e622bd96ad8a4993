"""The shortcuts taken to rank a few of very many numbers find what sorting all of them finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.node import Dimension
from tdb_server.scalars.best_entries import top_k_entries, top_k_per_row
from tdb_server.scalars.entry_blocks import best_entries
from tdb_server.scalars.scalar_values import DenseScalars
from torch import Tensor

from tests.property.requests import examples

AXES = (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS)
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
    values, flat = top_k_entries(numbers, k, largest)
    expected = numbers.flatten().sort(descending=largest).values[:k].numpy()
    assert np.array_equal(values, expected)
    assert np.array_equal(numbers.flatten().numpy()[flat], expected)
    assert len(set(flat.tolist())) == len(expected)


@examples(200)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from([1, 2, 40, 200]), st.sampled_from([1, 5, 64, 300])), min_size=1, max_size=4
    ),
    k=st.sampled_from([1, 3, 12, 50, 100_000]),
    largest=st.booleans(),
    n_values=TIES,
    shift=st.sampled_from([-1000, 0, 1000]),
    seed=st.integers(0, 1000),
)
def test_best_entries_of_several_layers(
    shapes: list[tuple[int, int]], k: int, largest: bool, n_values: int | None, shift: int, seed: int
) -> None:
    """All that equals the k-th is there, so that whoever asks can choose; zeros are only counted."""
    layers = [random_numbers(shape, seed + n, n_values) + shift for n, shape in enumerate(shapes)]
    blocks = [DenseScalars((one,), AXES, AXES, len(one)).blocks(k, largest, None) for one in layers]
    values, which, nodes = best_entries(blocks, k, largest)
    everything = torch.cat([one.flatten() for one in layers]).sort(descending=largest).values.numpy()
    last = everything[min(k, len(everything)) - 1]
    is_listed = (everything >= last if largest else everything <= last) & (everything != 0)
    assert np.array_equal(np.sort(values), np.sort(everything[is_listed]))
    found = [(int(layer), *node) for layer, node in zip(which, nodes.tolist(), strict=True)]
    assert [layers[layer][row, column].item() for layer, row, column in found] == values.tolist()
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 20, 100_000])
def test_blocks_without_numbers_are_left_out(largest: bool, k: int) -> None:
    numbers = random_numbers((200, 300), 0, None)
    broken = torch.full_like(numbers, torch.nan)
    blocks = [DenseScalars((one,), AXES, AXES, 200).blocks(k, largest, None) for one in (broken, numbers)]
    values, which, _ = best_entries(blocks, k, largest)
    expected = numbers.flatten().sort(descending=largest).values[:k]
    assert np.array_equal(np.sort(values), expected.sort().values)
    assert (which == 1).all()
    assert len(best_entries(blocks[:1], k, largest)[0]) == 0

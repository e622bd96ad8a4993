"""Dense numbers of a layer: ranked, looked up and summed as if the whole tensor had been written out."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from tdb_server.domain.node import Dimension
from tdb_server.scalars.entry_blocks import best_entries
from tdb_server.scalars.scalar_values import DenseScalars
from torch import Tensor

QUERIES, KEYS, HEADS = (
    Dimension.SEQUENCE_TOKENS,
    Dimension.ATTENDED_TO_SEQUENCE_TOKENS,
    Dimension.ATTN_HEADS,
)
N_TOKENS, N_HEADS = 5, 3
LAID_OUT, ORDER = (HEADS, QUERIES, KEYS), (QUERIES, KEYS, HEADS)
SUBSETS = list(chain.from_iterable(combinations(ORDER, n) for n in range(len(ORDER) + 1)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_tokens() -> tuple[DenseScalars, Tensor]:
    """A product of broadcast factors that covers three tokens, and all of it in node order [q, k, h]."""
    tokens = torch.tensor([0, 2, 4])
    factors = noise(N_HEADS, 3, N_TOKENS), noise(N_HEADS, 1, N_TOKENS, seed=1)
    whole = torch.zeros(N_TOKENS, N_TOKENS, N_HEADS, dtype=torch.float64)
    whole[tokens] = (factors[0] * factors[1]).permute(1, 2, 0)
    return DenseScalars(factors, LAID_OUT, ORDER, N_TOKENS, tokens), whole


def every_token() -> tuple[DenseScalars, Tensor]:
    numbers = noise(N_HEADS, N_TOKENS, N_TOKENS)
    return DenseScalars((numbers,), LAID_OUT, ORDER, N_TOKENS), numbers.permute(1, 2, 0)


@pytest.mark.parametrize("make", [some_tokens, every_token])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("token_index", [None, 2, 4])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_top(make: object, largest: bool, token_index: int | None, k: int) -> None:
    scalars, whole = make()  # type: ignore[operator]
    values, nodes = scalars.top(k, largest, token_index)
    considered = whole if token_index is None else whole[token_index]
    covered = considered[considered != 0]
    assert np.array_equal(values, covered.sort(descending=largest).values[:k])
    assert np.array_equal(whole[tuple(nodes.T)], values)
    if token_index is not None:
        assert (nodes[:, 0] == token_index).all()


@pytest.mark.parametrize("make", [some_tokens, every_token])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("token_index", [None, 2, 4])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_best_entries(make: object, largest: bool, token_index: int | None, k: int) -> None:
    scalars, _ = make()  # type: ignore[operator]
    values, _, nodes = best_entries([scalars.blocks(k, largest, token_index)], k, largest)
    top_values, top_nodes = scalars.top(k, largest, token_index)
    order = np.argsort(-values if largest else values)
    assert np.array_equal(values[order], top_values)
    assert np.array_equal(nodes[order], top_nodes)


def test_top_at_a_token_that_is_not_covered_is_empty() -> None:
    scalars, _ = some_tokens()
    values, nodes = scalars.top(3, True, token_index=1)
    assert values.shape == (0,)
    assert nodes.shape == (0, 3)
    assert len(best_entries([scalars.blocks(3, True, token_index=1)], 3, True)[0]) == 0


def test_top_without_any_token_is_empty() -> None:
    nothing = DenseScalars(
        (noise(N_HEADS, 0, N_TOKENS),), LAID_OUT, ORDER, N_TOKENS, torch.zeros(0, dtype=torch.long)
    )
    assert nothing.top(3, True, None)[0].shape == (0,)
    assert torch.equal(nothing.at(torch.tensor([[1, 0, 0]])), torch.zeros(1, dtype=torch.float64))
    assert torch.equal(nothing.add_sum([QUERIES]), torch.zeros(N_TOKENS, dtype=torch.float64))


def test_masked_entries_are_never_on_top_but_can_be_looked_up() -> None:
    numbers = noise(N_HEADS, N_TOKENS, N_TOKENS).abs() + 1
    numbers[:, 0, 1] = 100.0
    masked = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool).triu(1)
    scalars = DenseScalars((numbers,), LAID_OUT, ORDER, N_TOKENS, not_nodes=masked)
    values, nodes = scalars.top(N_HEADS * N_TOKENS**2, True, None)
    real = nodes[values != 0]
    assert len(real) == N_HEADS * N_TOKENS * (N_TOKENS + 1) // 2
    assert (real[:, 1] <= real[:, 0]).all()
    assert scalars.at(torch.tensor([[0, 1, 0]])) == 100.0


def test_all_that_equals_the_last_comes_too() -> None:
    numbers = torch.tensor([[3.0, 1.0, 2.0], [2.0, 2.0, 0.0]])
    scalars = DenseScalars((numbers,), (QUERIES, HEADS), (QUERIES, HEADS), 2)
    values, _, nodes = best_entries([scalars.blocks(2, True, None)], 2, True)
    assert values.tolist() == [3.0, 2.0, 2.0, 2.0]
    assert nodes.tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]
    assert len(scalars.top(2, True, None)[0]) == 2


@pytest.mark.parametrize("make", [some_tokens, every_token])
def test_at(make: object) -> None:
    scalars, whole = make()  # type: ignore[operator]
    nodes = torch.cartesian_prod(torch.arange(N_TOKENS), torch.arange(N_TOKENS), torch.arange(N_HEADS))
    assert torch.equal(scalars.at(nodes).view(whole.shape), whole)


@pytest.mark.parametrize("keep", SUBSETS)
@pytest.mark.parametrize("make", [some_tokens, every_token])
def test_sum(make: object, keep: tuple[Dimension, ...]) -> None:
    """Kept axes stand in node order, whatever the layout."""
    scalars, whole = make()  # type: ignore[operator]
    summed_away = [axis for axis, one in enumerate(ORDER) if one not in keep]
    expected = whole.sum(dim=summed_away) if summed_away else whole
    torch.testing.assert_close(scalars.add_sum(keep), expected)
    torch.testing.assert_close(scalars.add_sum(tuple(reversed(keep))), expected)


@pytest.mark.parametrize("keep", SUBSETS)
@pytest.mark.parametrize("make", [some_tokens, every_token])
def test_a_total_grows_and_the_numbers_stay(make: object, keep: tuple[Dimension, ...]) -> None:
    scalars, _ = make()  # type: ignore[operator]
    before = [factor.clone() for factor in scalars.factors]
    once = scalars.add_sum(keep).clone()
    total = scalars.add_sum(keep)
    assert scalars.add_sum(keep, total) is total
    torch.testing.assert_close(total, 2 * once)
    assert all(torch.equal(*pair) for pair in zip(scalars.factors, before, strict=True))


def test_a_known_sum_is_used_for_tokens_alone() -> None:
    numbers, known = noise(2, 4), torch.tensor([5.0, 6.0, 7.0])
    axes = (QUERIES, Dimension.VOCAB_SIZE)
    scalars = DenseScalars((numbers,), axes, axes, 3, torch.tensor([0, 2]), known_sum=known)
    assert torch.equal(scalars.add_sum([QUERIES]), known)
    assert scalars.add_sum(axes).shape == (3, 4)


def test_numbers_are_the_same_after_a_release() -> None:
    scalars, _ = some_tokens()
    before = scalars.top(3, True, None)
    scalars.release()
    after = scalars.top(3, True, None)
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])

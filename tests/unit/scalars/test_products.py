"""Products of which only a part is computed agree with whole ones."""

from __future__ import annotations

import pytest
import torch
from tdb_server.model.sparse_gradient import sparse_gradient_linear
from tdb_server.scalars.sampled_products import sampled_products
from tdb_server.scalars.vocabulary_product import vocabulary_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n_entries", [0, 1, 300])
def test_entries_of_a_product(n_entries: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n_entries)
    left = torch.randint(-3, 4, (7, 5), generator=generator).to(dtype)
    right = torch.randint(-3, 4, (60, 5), generator=generator).to(dtype)
    cells = torch.randperm(7 * 60, generator=generator)[:n_entries].sort().values
    rows, columns = cells // 60, cells % 60
    found = sampled_products(left, right, rows, columns)
    assert found.dtype is dtype
    assert torch.equal(found, (left @ right.T)[rows, columns])


@pytest.mark.parametrize("n_asked", [1, 2, 40, 200])
def test_the_gradient_of_logits(n_asked: int) -> None:
    """Of few and of all tokens, for a batch whose rows ask for different ones."""
    generator = torch.Generator().manual_seed(n_asked)
    unembedding = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    asked = torch.stack([torch.randperm(200, generator=generator)[:n_asked] for _ in range(3)])
    by = torch.randn(3, n_asked, generator=generator, dtype=torch.float64)

    def gradient(logits: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad((logits.gather(1, asked) * by).sum(), x)
        return found

    ours = vocabulary_product(x, unembedding)
    plain = x @ unembedding.T
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient(ours), gradient(plain))


@pytest.mark.parametrize("n_seen", [0, 1, 2, 5])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_gradient_where_few_tokens_are_seen(n_seen: int, has_bias: bool) -> None:
    """Of none, few and all tokens, for a batch whose rows are seen at different ones."""
    generator = torch.Generator().manual_seed(n_seen)
    weight = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    bias = torch.randn(7, generator=generator, dtype=torch.float64) if has_bias else None
    x = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    by = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    for row in by:
        row[torch.randperm(5, generator=generator)[n_seen:]] = 0

    def gradient(outputs: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad((outputs * by).sum(), x)
        return found

    ours = sparse_gradient_linear(x, weight, bias)
    plain = torch.nn.functional.linear(x, weight, bias)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradient(ours), gradient(plain))

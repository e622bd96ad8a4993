"""Entries of a product that are computed alone agree with those of the whole one."""

from __future__ import annotations

import pytest
import torch
from tdb_server.engine.sampled_products import sampled_products


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

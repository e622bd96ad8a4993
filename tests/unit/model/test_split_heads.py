"""Queries, keys and values out of one product: values and written-out gradient, beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from tdb_server.model.rotary import rotate
from tdb_server.model.split_heads import split_heads
from torch import Tensor

N_QUERIES, N_KEYS, D_HEAD, N_TOKENS = 4, 2, 6, 5


@pytest.mark.parametrize("is_rotated", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradient(is_rotated: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    cosine: Tensor | float = 0.4
    sine = None
    if is_rotated:
        half_cosine, half_sine = numbers(N_TOKENS, D_HEAD // 2), numbers(N_TOKENS, D_HEAD // 2)
        cosine, sine = half_cosine.repeat(1, 2), torch.cat((-half_sine, half_sine), dim=1)
    qkv = numbers(2, N_TOKENS, N_QUERIES + 2 * N_KEYS, D_HEAD).requires_grad_()
    q, k, v = torch.split(qkv.transpose(1, 2), [N_QUERIES, N_KEYS, N_KEYS], dim=1)
    expected = rotate(q, cosine, sine), rotate(k, cosine, sine), v
    found = split_heads(qkv, N_QUERIES, N_KEYS, cosine, sine)
    torch.testing.assert_close(found, expected)
    onto = [numbers(*one.shape) for one in expected]
    (gradient,), (expected_gradient,) = (
        torch.autograd.grad(outputs, qkv, onto) for outputs in (found, expected)
    )
    limit = 4 * torch.finfo(dtype).eps * float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=limit)


def test_what_nobody_asks_for_has_no_gradient() -> None:
    qkv = torch.ones(1, N_TOKENS, N_QUERIES + 2 * N_KEYS, D_HEAD, requires_grad=True)
    _, k, _ = split_heads(qkv, N_QUERIES, N_KEYS, 2.0, None)
    (gradient,) = torch.autograd.grad(k.sum(), qkv)
    expected = torch.zeros_like(qkv)
    expected[:, :, N_QUERIES : N_QUERIES + N_KEYS] = 2
    torch.testing.assert_close(gradient, expected)

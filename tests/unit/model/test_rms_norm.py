"""RMS norm and its written-out gradient, beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tdb_server.model.rms_norm import rms_norm


@pytest.mark.parametrize("shape", [(2, 5, 24), (1, 1, 3), (7, 16)])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(shape: tuple[int, ...], size: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (size * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    gain = torch.randn(shape[-1], generator=generator).to(dtype)
    onto = torch.randn(shape, generator=generator).to(dtype)
    found, expected = rms_norm(x, gain, 1e-5), F.rms_norm(x, shape[-1:], gain, 1e-5)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, x, onto)
    (expected_gradient,) = torch.autograd.grad(expected, x, onto)
    limit = 100 * torch.finfo(dtype).eps * float(expected_gradient.abs().max())
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=limit)


def test_zeros_have_a_gradient() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(rms_norm(x, torch.ones(8), 1e-6).sum(), x)
    torch.testing.assert_close(gradient, torch.full((1, 8), 1e3))

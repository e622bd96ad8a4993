"""Gated MLPs in one step: values and written-out gradient, beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from tdb_server.model.activations import activate, gated


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient(activation: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(2, 5, 24, generator=generator)).to(dtype).requires_grad_()
    onto = torch.randn(2, 5, 12, generator=generator).to(dtype)
    gate, up = hidden.chunk(2, dim=-1)
    expected = activate(activation, gate) * up
    found = gated(activation, hidden)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(one, hidden, onto) for one in (found, expected))
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0)

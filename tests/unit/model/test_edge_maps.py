"""Gradients through norms beside what autograd makes of the norms themselves."""

from __future__ import annotations

import pytest
import torch
from tdb_server.model.decoder import Norm

from tests.property.small_models import small_model


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_gradients_go_back_through_a_norm_and_its_scale(name: str) -> None:
    norm: Norm = small_model(name).decoder.blocks[0].attention.norm
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, generator=generator, dtype=torch.float64).requires_grad_()
    gradients = torch.randn(3, 5, 16, generator=generator, dtype=torch.float64)
    expected = [torch.autograd.grad(norm(x), x, one)[0] if norm.weights else one for one in gradients]
    torch.testing.assert_close(norm.gradient_before(x.detach(), gradients), torch.stack(expected))

"""The plain model, against which the engine is held, computes what transformers computes."""

from __future__ import annotations

import pytest
import torch
from tdb_server.domain.hook_point import HookPoint

from tests.property.small_models import MODELS, small_model

PROMPT = (3, 41, 5, 5, 17, 28)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_plain_model_equals_transformers(name: str) -> None:
    model = small_model(name)
    expected = model.reference(torch.tensor([PROMPT]), output_attentions=True)
    seen = model.plain.run(PROMPT)
    torch.testing.assert_close(seen[HookPoint.LOGITS, None].float(), expected.logits, atol=1e-4, rtol=1e-4)
    for layer, probs in enumerate(expected.attentions):
        ours = seen[HookPoint.ATTN_QK_PROBS, layer].permute(0, 3, 1, 2)
        torch.testing.assert_close(ours.float(), probs, atol=1e-5, rtol=1e-4)

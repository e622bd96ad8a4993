"""Logits, whose gradient is as sparse as what is asked of them.

A loss looks at a few target and distractor tokens. On the way back only the rows of the unembedding that
belong to these tokens count; a product with all of it would read the largest matrix of a small model for
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _VocabularyProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unembedding: Tensor) -> Tensor:
        ctx.unembedding = unembedding
        return F.linear(x, unembedding)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients  # [B, V]
        tokens = gradient.any(dim=0).nonzero()[:, 0]
        if 4 * len(tokens) > gradient.shape[1]:
            return gradient @ ctx.unembedding, None
        return gradient[:, tokens] @ ctx.unembedding[tokens], None


def vocabulary_product(x: Tensor, unembedding: Tensor) -> Tensor:
    """What the unembedding [V, d] reads, [B, d], to logits [B, V].

    On a GPU the whole product takes less than to wait for which tokens count.
    """
    if x.device.type != "cpu":
        return F.linear(x, unembedding)
    apply: Callable[[Tensor, Tensor], Tensor] = _VocabularyProduct.apply
    return apply(x, unembedding)

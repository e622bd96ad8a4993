"""One product's queries, keys and values, apart; queries and keys scaled and rotated.

The gradient is written out: each of the three puts its part straight where it belongs. PyTorch would cut
copies and join them again, several times a layer, which for a short prompt costs more than the attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_queries: int, n_keys: int, cosine: Tensor | float, sine: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shape, ctx.cosine, ctx.sine = qkv.shape, cosine, sine
        heads = qkv.transpose(1, 2)  # [B, H + 2G, T, e]
        n_rows, _, n_tokens, d_head = heads.shape
        turned = heads.new_empty(n_rows, n_queries + n_keys, n_tokens, d_head)
        _turn(heads[:, : n_queries + n_keys], cosine, sine, turned, 1)
        q, k = torch.split(turned, [n_queries, n_keys], dim=1)
        return q, k, heads[:, n_queries + n_keys :]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        at_q, at_k, at_v = gradients
        found = at_q.new_empty(ctx.shape)
        sizes = [one.shape[1] for one in gradients]
        of_q, of_k, of_v = torch.split(found.transpose(1, 2), sizes, dim=1)
        _turn(at_q, ctx.cosine, ctx.sine, of_q, -1)
        _turn(at_k, ctx.cosine, ctx.sine, of_k, -1)
        of_v.copy_(at_v)
        return found, None, None, None, None


def _turn(x: Tensor, cosine: Tensor | float, sine: Tensor | None, into: Tensor, sign: int) -> None:
    """Writes [B, heads, T, e], turned by tables [T, e] (`rotary_frequencies`), forth or back."""
    torch.mul(x, cosine, out=into)
    if sine is not None:
        half = x.shape[-1] // 2
        into[..., :half].addcmul_(x[..., half:], sine[:, :half], value=sign)
        into[..., half:].addcmul_(x[..., :half], sine[:, half:], value=sign)


def split_heads(
    qkv: Tensor, n_queries: int, n_keys: int, cosine: Tensor | float, sine: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, e], keys [B, G, T, e] and values [B, G, T, e] out of [B, T, H + 2G, e].

    Args:
        n_queries: heads H.
        n_keys: key/value heads G.
        cosine: what queries and keys are multiplied with: a table [T, e], or the same everywhere.
        sine: where they are rotated, what their other half is multiplied with [T, e].
    """
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _SplitHeads.apply
    return apply(qkv, n_queries, n_keys, cosine, sine)

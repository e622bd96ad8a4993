"""One product's queries, keys and values, apart; queries and keys scaled and rotated.

The gradient is written out: each of the three puts its part straight where it belongs. PyTorch would cut
copies and join them again, several times a layer, which for a short prompt costs more than the attention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tdb_server.model.rotary import write_rotated


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, n_queries: int, n_keys: int, cosine: Tensor | float, sine: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.shape, ctx.cosine, ctx.sine = qkv.shape, cosine, sine
        heads = qkv.transpose(1, 2)  # [B, H + 2G, T, e]
        n_rows, _, n_tokens, d_head = heads.shape
        turned = heads.new_empty(n_rows, n_queries + n_keys, n_tokens, d_head)
        write_rotated(heads[:, : n_queries + n_keys], cosine, sine, turned)
        q, k = torch.split(turned, [n_queries, n_keys], dim=1)
        return q, k, heads[:, n_queries + n_keys :]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        at_q, at_k, at_v = gradients
        found = at_q.new_empty(ctx.shape)
        sizes = [one.shape[1] for one in gradients]
        of_q, of_k, of_v = torch.split(found.transpose(1, 2), sizes, dim=1)
        write_rotated(at_q, ctx.cosine, ctx.sine, of_q, is_back=True)
        write_rotated(at_k, ctx.cosine, ctx.sine, of_k, is_back=True)
        of_v.copy_(at_v)
        return found, None, None, None, None


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

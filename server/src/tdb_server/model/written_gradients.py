"""Steps of the decoder whose gradients are written out, each beside the plain steps that say what it is.

Autograd differentiates one operation at a time: it joins from copies what was cut apart, makes two dozen
small steps of a norm, and multiplies zeros. For a short prompt on a CPU this costs as much as products with
weights. Each step has its plain twin's value and gradient, and stays as long as calls are faster with it.

Shapes: B rows, T tokens, d model width, H heads, G key/value heads, e head width, F neurons, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.model.activations import activate, write_activation_gradient
from tdb_server.model.precision import wide_linear, wide_product
from tdb_server.model.rotary import rotate, write_rotated

# RMS norm (Zhang and Sennrich 2019)


def plain_rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """x over its root mean square, times the gain [d]: [..., d] to [..., d]."""
    return F.rms_norm(x.to(gain.dtype), x.shape[-1:], gain, epsilon).to(x.dtype)


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """As `plain_rms_norm`, which on a GPU is one operation, and in half precision rounds less."""
    if x.device.type != "cpu" or x.dtype.itemsize < 4:
        return plain_rms_norm(x, gain, epsilon)
    apply: Callable[[Tensor, Tensor, float], Tensor] = _RmsNorm.apply
    return apply(x, gain, epsilon)


class _RmsNorm(torch.autograd.Function):
    """y = gain x / s, where s² = mean(x²) + epsilon.

    With the gradient g of y and h = gain g / s, that of x is  h - x mean(h x) / s².
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        inverse = (x * x).sum(dim=-1, keepdim=True).mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse)
        ctx.gain = gain
        return (x * inverse).mul_(gain)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, inverse = ctx.saved_tensors
        scaled = (gradients[0] * ctx.gain).mul_(inverse)
        along_x = (scaled * x).sum(dim=-1, keepdim=True).mul_(inverse * inverse)
        return scaled.addcmul_(x, along_x, value=-1 / x.shape[-1]), None, None


# Queries, keys and values


def plain_split_heads(
    qkv: Tensor, n_queries: int, n_keys: int, cosine: Tensor | float, sine: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, H, T, e], keys [B, G, T, e] and values [B, G, T, e] out of [B, T, H + 2G, e].

    Args:
        n_queries: heads H.
        n_keys: key/value heads G.
        cosine: what queries and keys are multiplied with: a table [T, e], or the same everywhere.
        sine: where they are rotated, what their other half is multiplied with [T, e].
    """
    q, k, v = torch.split(qkv.transpose(1, 2), [n_queries, n_keys, n_keys], dim=1)
    return rotate(q, cosine, sine), rotate(k, cosine, sine), v


def split_heads(
    qkv: Tensor, n_queries: int, n_keys: int, cosine: Tensor | float, sine: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain_split_heads`. On the way back each of the three writes its part where it belongs."""
    apply: Callable[..., tuple[Tensor, Tensor, Tensor]] = _SplitHeads.apply
    return apply(qkv, n_queries, n_keys, cosine, sine)


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


# A gated MLP's activations


def plain_gated(activation: str, hidden: Tensor) -> Tensor:
    """`activation(gate) * up`, both side by side in [..., 2F]: to [..., F]."""
    gate, up = hidden.chunk(2, dim=-1)
    return activate(activation, gate) * up


def gated(activation: str, hidden: Tensor) -> Tensor:
    """As `plain_gated`. Both gradients are written side by side, as the product before takes them."""
    apply: Callable[[Tensor, str], Tensor] = _Gated.apply
    return apply(hidden, activation)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, activation: str) -> Tensor:
        gate, up = hidden.chunk(2, dim=-1)
        activated = activate(activation, gate)
        ctx.activation = activation
        ctx.save_for_backward(hidden, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden, activated = ctx.saved_tensors
        gate, up = hidden.chunk(2, dim=-1)
        found = torch.empty_like(hidden)
        of_gate, of_up = found.chunk(2, dim=-1)
        torch.mul(gradients[0], activated, out=of_up)
        torch.mul(gradients[0], up, out=of_gate)
        write_activation_gradient(ctx.activation, of_gate, gate, of_gate)
        return found, None


# Products whose gradient is mostly zero. Their plain twin is `F.linear`.


def linear_seen_at_few_tokens(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`: [..., inputs] to [..., outputs].

    A loss looks at the last token. On the way back through the last layer nothing has spread to other tokens
    yet: of each product there, all rows of the gradient but one are zero, until keys and values are reached.
    On a GPU the whole gradient takes less than to wait for which tokens count.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _LinearSeenAtFewTokens.apply
    return apply(x, weight, bias)


class _LinearSeenAtFewTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].flatten(end_dim=-2)  # [n, outputs]
        tokens = gradient.any(dim=1).nonzero()[:, 0]
        if 2 * len(tokens) > len(gradient):
            found = gradient @ ctx.weight
        else:
            found = gradient.new_zeros(len(gradient), ctx.weight.shape[1])
            found[tokens] = gradient[tokens] @ ctx.weight
        return found.view(*gradients[0].shape[:-1], -1), None, None


def linear_read_at_few_outputs(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`: [..., d] to logits [..., V], in x's precision, which the weight may not have.

    A loss looks at a few target and distractor tokens. On the way back only the rows of the unembedding that
    belong to these count; all of it is the largest matrix of a small model.
    On a GPU the whole gradient takes less than to wait for which tokens count. A weight in half precision
    is widened a part at a time, on both ways, where x is float32: autograd would keep all parts.
    """
    if x.device.type != "cpu" and x.dtype == weight.dtype:
        return F.linear(x, weight)
    apply: Callable[[Tensor, Tensor], Tensor] = _LinearReadAtFewOutputs.apply
    return apply(x, weight)


class _LinearReadAtFewOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return wide_linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), weight = gradients, ctx.weight
        if gradient.device.type == "cpu":
            outputs = gradient.flatten(end_dim=-2).any(dim=0).nonzero()[:, 0]
            if 4 * len(outputs) <= gradient.shape[-1]:
                gradient, weight = gradient[..., outputs], weight[outputs]
        return wide_product(gradient, weight), None

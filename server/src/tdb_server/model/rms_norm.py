"""RMS norm in a few steps (Zhang and Sennrich 2019), with its gradient written out.

On a CPU, PyTorch composes this norm of a dozen operations, and its gradient of two dozen. For a short prompt
each of them takes longer to begin than to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """x over its root mean square, times the gain [d]: [..., d] to [..., d]."""
    if x.device.type != "cpu" or x.dtype.itemsize < 4:
        return F.rms_norm(x, x.shape[-1:], gain, epsilon)
    apply: Callable[[Tensor, Tensor, float], Tensor] = _RmsNorm.apply
    return apply(x, gain, epsilon)

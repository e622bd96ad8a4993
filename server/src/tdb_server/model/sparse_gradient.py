"""A product with weights whose gradient is computed only where it is not zero.

A loss looks at the last token. On the way back through the last layer nothing has spread to other tokens yet:
of each product there, all rows of the gradient but one are zero, until the keys and values are reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SparseGradientLinear(torch.autograd.Function):
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


def sparse_gradient_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias`: [..., inputs] to [..., outputs].

    On a GPU the whole gradient takes less than to wait for which tokens count.
    """
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _SparseGradientLinear.apply
    return apply(x, weight, bias)

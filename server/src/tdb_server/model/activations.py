"""The MLP's nonlinearities, and that of a gated MLP in one step with its gradient written out.

A gated MLP multiplies `activation(gate)` with `up`, both from one product. Their gradients are written next
to each other, as the way back through that product takes them: PyTorch would make both and join copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(activation: str, pre_act: Tensor) -> Tensor:
    """The nonlinearity that `DecoderConfig.activation` names."""
    match activation:
        case "silu":
            return F.silu(pre_act)
        case "gelu_tanh":
            return F.gelu(pre_act, approximate="tanh")
        case _:
            return F.gelu(pre_act)


def _write_gradient(activation: str, gradient: Tensor, pre_act: Tensor, into: Tensor) -> None:
    """The gradient before the nonlinearity, from that behind it; `into` may be `gradient` itself."""
    match activation:
        case "silu":
            torch.ops.aten.silu_backward.grad_input(gradient, pre_act, grad_input=into)
        case "gelu_tanh":
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, approximate="tanh", grad_input=into)
        case _:
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, grad_input=into)


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
        _write_gradient(ctx.activation, of_gate, gate, of_gate)
        return found, None


def gated(activation: str, hidden: Tensor) -> Tensor:
    """`activation(gate) * up`, both side by side in [..., 2F]: to [..., F]."""
    apply: Callable[[Tensor, str], Tensor] = _Gated.apply
    return apply(hidden, activation)

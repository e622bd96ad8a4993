"""The MLP's nonlinearities."""

from __future__ import annotations

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


def activation_over_input(activation: str, pre_act: Tensor) -> Tensor:
    """The nonlinearity over what it is applied to, f(x) / x, at 0 its limit.

    Each of them is x times a probability, which needs no division.
    """
    match activation:
        case "silu":
            return torch.sigmoid(pre_act)
        case "gelu_tanh":
            return (torch.tanh((2 / torch.pi) ** 0.5 * (pre_act + 0.044715 * pre_act**3)) + 1) / 2
        case _:
            return (torch.erf(pre_act / 2**0.5) + 1) / 2


def write_activation_gradient(activation: str, gradient: Tensor, pre_act: Tensor, into: Tensor) -> None:
    """The gradient before the nonlinearity, from that behind it; `into` may be `gradient` itself."""
    match activation:
        case "silu":
            torch.ops.aten.silu_backward.grad_input(gradient, pre_act, grad_input=into)
        case "gelu_tanh":
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, approximate="tanh", grad_input=into)
        case _:
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, grad_input=into)

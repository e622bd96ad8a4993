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


def write_activation_gradient(activation: str, gradient: Tensor, pre_act: Tensor, into: Tensor) -> None:
    """The gradient before the nonlinearity, from that behind it; `into` may be `gradient` itself."""
    match activation:
        case "silu":
            torch.ops.aten.silu_backward.grad_input(gradient, pre_act, grad_input=into)
        case "gelu_tanh":
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, approximate="tanh", grad_input=into)
        case _:
            torch.ops.aten.gelu_backward.grad_input(gradient, pre_act, grad_input=into)

"""The way back through what is not linear, where a row of a batch asks for another one than the derivative.

Forward values are the same under every rule, bit by bit. With g for the gradient behind a step:

GRADIENT      the derivative. A batch with no other rule never comes here.
FROZEN_NORMS  every norm's scale is a constant, those of queries and keys and of what blocks add included.
RELP          relevance patching (Jafari et al. 2025, arXiv 2508.21258):
              norm scales are constants;
              a nonlinearity f(x) passes back  g f(x) / x, where f(x) / x is a constant (at 0 its limit);
              a product of gate and up passes half of its gradient to each;
              attention patterns are constants for what is before them, and have their own gradient. This last
              rule can be left out.
GIM           gradient interaction modifications (Edin et al. 2025, arXiv 2505.17630):
              norm scales are constants;
              attention's softmax passes back  s (g - sum(s g))  with  s = softmax(logits / 2);
              queries and keys get a quarter of the gradient that leaves attention to them, values half.

Soft caps, and all else that is not named, have their derivatives.

Shapes: B rows; tensors [B, ...] have rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tdb_server.domain.requests import BackwardRule
from tdb_server.model.activations import activate, activation_over_input, write_activation_gradient


@dataclass(frozen=True)
class BackwardRules:
    """Which rows of a batch go back in which way: each True where they do [B], or None where no row does.

    Attributes:
        constant_scales: norm scales are constants.
        relp_mlps: MLPs pass back as RELP has it.
        constant_patterns: attention patterns are constants for what is before them.
        gim_attention: attention passes back as GIM has it.
    """

    constant_scales: Tensor | None
    relp_mlps: Tensor | None
    constant_patterns: Tensor | None
    gim_attention: Tensor | None


def rows_by_step(rules: Sequence[tuple[BackwardRule, bool]]) -> list[list[bool]]:
    """Of rows' rules, each with whether patterns let gradients through: `BackwardRules` row by row."""
    return [
        [rule is not BackwardRule.GRADIENT for rule, _ in rules],
        [rule is BackwardRule.RELP for rule, _ in rules],
        [rule is BackwardRule.RELP and not lets_through for rule, lets_through in rules],
        [rule is BackwardRule.GIM for rule, _ in rules],
    ]


def with_constant_scale(scale: Tensor, rules: BackwardRules | None) -> Tensor:
    """A norm's scale [B, ...] as its norm divides by it."""
    return scale if rules is None else with_scaled_gradient(scale, rules.constant_scales, 0.0)


def activated(activation: str, pre_act: Tensor, rules: BackwardRules | None) -> Tensor:
    """The MLP's nonlinearity: [B, T, F] to [B, T, F]."""
    if rules is None or rules.relp_mlps is None:
        return activate(activation, pre_act)
    apply: Callable[..., Tensor] = _Activation.apply
    return apply(pre_act, activation, rules.relp_mlps)


def gate_times_up(gate: Tensor, up: Tensor, rules: BackwardRules | None) -> Tensor:
    """The product of a gate behind its nonlinearity and what it lets through: [B, T, F]."""
    product = gate * up
    return product if rules is None else with_scaled_gradient(product, rules.relp_mlps, 0.5)


def into_attention(
    q: Tensor, k: Tensor, v: Tensor, rules: BackwardRules | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, H or G, T, e] as attention takes them."""
    if rules is None:
        return q, k, v
    quarter_of_q, quarter_of_k = (with_scaled_gradient(one, rules.gim_attention, 0.25) for one in (q, k))
    return quarter_of_q, quarter_of_k, with_scaled_gradient(v, rules.gim_attention, 0.5)


def attention_pattern(logits: Tensor, rules: BackwardRules | None) -> Tensor:
    """Attention logits to probabilities: [B, H, T, T]."""
    if rules is None:
        return torch.softmax(logits, dim=-1)
    if rules.gim_attention is None:
        probs = torch.softmax(logits, dim=-1)
    else:
        apply: Callable[..., Tensor] = _Softmax.apply
        probs = apply(logits, rules.gim_attention)
    return with_scaled_gradient(probs, rules.constant_patterns, 0.0)


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """`value`; on the way back it is `other`, which has that value but for rounding."""
    return value.detach() + (other - other.detach())


def with_scaled_gradient(x: Tensor, rows: Tensor | None, factor: float) -> Tensor:
    """`x` [B, ...]; on the way back the gradient of these rows [B] is multiplied with a factor."""
    if rows is None:
        return x
    apply: Callable[..., Tensor] = _ScaledGradient.apply
    return apply(x, rows, factor)


class _ScaledGradient(torch.autograd.Function):
    """A function of its own, as what autograd could do with plain steps would copy x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, factor: float) -> Tensor:
        ctx.rows, ctx.factor = rows, factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return torch.where(_along(ctx.rows, gradient), gradient * ctx.factor, gradient), None, None


class _Activation(torch.autograd.Function):
    """A function of its own, as it keeps for both kinds of rows what the derivative alone needs."""

    @staticmethod
    def forward(ctx: Any, pre_act: Tensor, activation: str, rows: Tensor) -> Tensor:
        ctx.save_for_backward(pre_act)
        ctx.activation, ctx.rows = activation, rows
        return activate(activation, pre_act)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (pre_act,) = gradients, ctx.saved_tensors
        found = torch.empty_like(gradient)
        write_activation_gradient(ctx.activation, gradient, pre_act, found)
        of_rows = gradient * activation_over_input(ctx.activation, pre_act)
        return torch.where(_along(ctx.rows, gradient), of_rows, found), None, None


class _Softmax(torch.autograd.Function):
    """Passes back s (g - sum(s g)): s are the probabilities, or for these rows those of halved logits.

    A function of its own, as it keeps the probabilities alone: e^(x / 2) is the root of e^x, so that those of
    halved logits are the roots of the others over their sum.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor) -> Tensor:
        probs = torch.softmax(logits, dim=-1)
        ctx.save_for_backward(probs)
        ctx.rows = rows
        return probs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), (probs,) = gradients, ctx.saved_tensors
        roots = probs.sqrt()
        of_halved = roots / roots.sum(dim=-1, keepdim=True)
        s = torch.where(_along(ctx.rows, probs), of_halved, probs)
        return s * (gradient - (s * gradient).sum(dim=-1, keepdim=True)), None


def _along(rows: Tensor, x: Tensor) -> Tensor:
    """What is said of rows [B], to stand beside x [B, ...]."""
    return rows.view(-1, *[1] * (x.dim() - 1))

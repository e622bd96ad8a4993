"""Steps with written-out gradients beside their plain twins: values and gradients, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from tdb_server.model.written_gradients import (
    gated,
    linear_read_at_few_outputs,
    linear_seen_at_few_tokens,
    plain_gated,
    plain_rms_norm,
    plain_split_heads,
    rms_norm,
    split_heads,
)
from torch import Tensor

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""How far gradients may be off, over the largest."""
Draw = Callable[..., Tensor]
Step = Callable[[Tensor], Tensor | tuple[Tensor, ...]]


@dataclass
class Pair:
    """A step and its plain twin, functions of x; `seen` is where gradients arrive, everywhere if None."""

    x: Tensor
    step: Step
    plain: Step
    seen: Tensor | None = None


def a_norm(draw: Draw, shape: tuple[int, ...], size: float) -> Pair:
    gain = draw(shape[-1])
    return Pair(
        size * draw(*shape), lambda x: rms_norm(x, gain, 1e-5), lambda x: plain_rms_norm(x, gain, 1e-5)
    )


def heads(draw: Draw, shape: tuple[int, int, int, int], n_queries: int, *, is_rotated: bool) -> Pair:
    _, n_tokens, n_heads, d_head = shape
    n_keys = (n_heads - n_queries) // 2
    cosine: Tensor | float = 0.4
    sine = None
    if is_rotated:
        half_cosine, half_sine = draw(n_tokens, d_head // 2), draw(n_tokens, d_head // 2)
        cosine, sine = half_cosine.repeat(1, 2), torch.cat((-half_sine, half_sine), dim=1)
    arguments = n_queries, n_keys, cosine, sine
    return Pair(
        draw(*shape), lambda x: split_heads(x, *arguments), lambda x: plain_split_heads(x, *arguments)
    )


def a_gate(draw: Draw, activation: str) -> Pair:
    return Pair(3 * draw(2, 5, 22), lambda x: gated(activation, x), lambda x: plain_gated(activation, x))


def few_tokens(draw: Draw, n_seen: int, *, has_bias: bool) -> Pair:
    """Of none, few and all tokens, for a batch whose rows are seen at different ones."""
    weight, bias = draw(7, 4), draw(7) if has_bias else None
    seen = torch.zeros(3, 5, 1, dtype=torch.bool)
    for row in range(3):
        seen[row, torch.randperm(5)[:n_seen]] = True
    return Pair(
        draw(3, 5, 4),
        lambda x: linear_seen_at_few_tokens(x, weight, bias),
        lambda x: F.linear(x, weight, bias),
        seen,
    )


def few_outputs(draw: Draw, n_seen: int) -> Pair:
    """Of few and of all tokens, for a batch whose rows ask for different ones."""
    weight, seen = draw(201, 9), torch.zeros(3, 201, dtype=torch.bool)
    for row in range(3):
        seen[row, torch.randperm(201)[:n_seen]] = True
    return Pair(
        draw(3, 9), lambda x: linear_read_at_few_outputs(x, weight), lambda x: F.linear(x, weight), seen
    )


PAIRS: dict[str, Callable[[Draw], Pair]] = {
    "norm": lambda draw: a_norm(draw, (2, 5, 23), 1.0),
    "norm of one token": lambda draw: a_norm(draw, (1, 1, 3), 1.0),
    "norm of small numbers": lambda draw: a_norm(draw, (7, 16), 1e-4),
    "norm of large numbers": lambda draw: a_norm(draw, (7, 16), 1e3),
    "heads": lambda draw: heads(draw, (2, 5, 9, 3), 3, is_rotated=False),
    "heads, rotated": lambda draw: heads(draw, (2, 5, 8, 6), 4, is_rotated=True),
    "heads, one token": lambda draw: heads(draw, (1, 1, 5, 2), 3, is_rotated=True),
    "gate, silu": lambda draw: a_gate(draw, "silu"),
    "gate, gelu_tanh": lambda draw: a_gate(draw, "gelu_tanh"),
    "gate, gelu": lambda draw: a_gate(draw, "gelu"),
    **{
        f"{n} tokens{', bias' * has_bias}": lambda draw, n=n, has_bias=has_bias: few_tokens(
            draw, n, has_bias=has_bias
        )
        for n in (0, 1, 2, 5)
        for has_bias in (False, True)
    },
    **{f"{n} outputs": lambda draw, n=n: few_outputs(draw, n) for n in (0, 1, 40, 201)},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_a_step_is_its_plain_twin(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    pair = PAIRS[name](draw)
    x = pair.x.requires_grad_()
    found, expected = (one if isinstance(one, tuple) else (one,) for one in (pair.step(x), pair.plain(x)))
    torch.testing.assert_close(found, expected)
    onto = [draw(*one.shape) * (1 if pair.seen is None else pair.seen) for one in expected]
    (gradient,), (expected_gradient,) = (torch.autograd.grad(one, x, onto) for one in (found, expected))
    limit = DTYPES[dtype] * max(float(expected_gradient.abs().max()), 1e-30)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=limit)


def test_the_norm_of_zeros_has_a_gradient() -> None:
    x = torch.zeros(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(rms_norm(x, torch.ones(8), 1e-6).sum(), x)
    torch.testing.assert_close(gradient, torch.full((1, 8), 1e3))


def test_heads_that_nobody_asks_for_have_no_gradient() -> None:
    qkv = torch.ones(1, 5, 8, 6, requires_grad=True)
    _, k, _ = split_heads(qkv, 4, 2, 2.0, None)
    (gradient,) = torch.autograd.grad(k.sum(), qkv)
    expected = torch.zeros_like(qkv)
    expected[:, :, 4:6] = 2
    torch.testing.assert_close(gradient, expected)

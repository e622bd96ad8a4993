"""Large layers ranked and summed a few tokens at a time.

The numbers of a long prompt's layer are computed, summed, and looked through twice. If all of them are
computed first, each step waits for the memory; of a few tokens they are still in the processor's cache.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from tdb_server.scalars.scalar_values import DenseScalars, ScalarValues

MAX_ENTRIES = 2**20
"""Of a part. In float32 half of it, a thread's share, fits into a core's second-level cache."""


def token_parts(values: ScalarValues) -> list[ScalarValues]:
    """A layer's numbers, at some of their tokens each, in order. On a GPU, and of few numbers, one part."""
    if not isinstance(values, DenseScalars) or values.known_sum is not None:
        return [values]
    axis = values.token_axis
    n_parts = math.ceil(values.n_entries / MAX_ENTRIES)
    if axis is None or n_parts <= 1 or values.device.type != "cpu":
        return [values]
    n_tokens = values.shape[axis]
    step = math.ceil(n_tokens / n_parts)
    return [_cut(values, axis, start, min(step, n_tokens - start)) for start in range(0, n_tokens, step)]


def _cut(values: DenseScalars, axis: int, start: int, length: int) -> DenseScalars:
    """The numbers at some places of the token axis."""
    axis_from_end = axis - len(values.shape)  # masks have fewer axes
    tokens = torch.arange(values.n_tokens) if values.tokens is None else values.tokens

    def cut(x: Tensor) -> Tensor:
        return x if x.shape[axis_from_end] == 1 else x.narrow(axis_from_end, start, length)

    return replace(
        values,
        factors=[cut(factor) for factor in values.factors],
        tokens=tokens[start : start + length],
        not_nodes=None if values.not_nodes is None else cut(values.not_nodes),
    )

"""Products made up for tests, each beside all of the numbers it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tdb_server.domain.node import Dimension
from tdb_server.engine.products import Layers, Product
from torch import Tensor

TOKENS, KEYS = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
HEADS, NEURONS, LATENTS = Dimension.ATTN_HEADS, Dimension.MLP_ACTS, Dimension.AUTOENCODER_LATENTS
LENGTHS = (5, 3, 4)
N_ROWS, N_LAYERS, N_TOKENS, WIDTH, N_HEADS, N_LATENTS = 3, 3, 5, 6, 2, 7
COVERED = ([4], [0, 2], [1, 2, 3])
"""The tokens of each row that products of some tokens cover."""


@dataclass(frozen=True)
class Example:
    """A product, and what it stands for, in node order [B, L, ...].

    Attributes:
        numbers: of all nodes.
        ranked: the same as they are ranked: zero for what is not a node.
        is_there: whether an entry takes a place among others.
    """

    product: Product
    numbers: Tensor
    ranked: Tensor
    is_there: Tensor


Make = Callable[..., Tensor]


def numbers_of(seed: int, n_values: int | None) -> Make:
    """Normal numbers; with `n_values`, so many whole ones, zero among them: many are equal, sums exact."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        if n_values is None:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.randint(-(n_values // 2), n_values // 2 + 1, shape, generator=generator).double()

    return make


def _is_padding() -> Tensor:
    return torch.arange(N_TOKENS) >= torch.tensor(LENGTHS)[:, None]  # [B, T]


def _product(
    factors: Sequence[Layers], axes: tuple[Dimension, ...], order: tuple[Dimension, ...], **more: object
) -> Product:
    layers = tuple(range(N_LAYERS))
    return Product(tuple(factors), layers, axes, order, N_ROWS, N_TOKENS, LENGTHS, **more)  # type: ignore[arg-type]


def _some_tokens(is_used: Tensor) -> tuple[np.ndarray, Tensor]:
    """Covered tokens padded with the first [B, n], and which of them are not padding."""
    width = max(map(len, COVERED))
    tokens = np.array([[*one, *[one[0]] * (width - len(one))] for one in COVERED])
    is_own = torch.tensor([[place < len(one) for place in range(width)] for one in COVERED])
    for row, covered in enumerate(COVERED):
        is_used[row, covered] = True
    return tokens, is_own


def neurons(make: Make) -> Example:
    """One factor by layer, another of all layers that all rows share; rows are padded."""
    is_padding = _is_padding()
    acts = [make(N_ROWS, N_TOKENS, WIDTH).masked_fill(is_padding[..., None], 0) for _ in range(N_LAYERS)]
    norms = make(1, N_LAYERS, 1, WIDTH)
    absent = is_padding[:, None, :, None]
    product = _product([Layers(acts), Layers.of(norms)], *[(TOKENS, NEURONS)] * 2, absent=absent)
    numbers = torch.stack(acts, dim=1) * norms
    return Example(product, numbers, numbers, ~absent.expand(numbers.shape))


def pairs(make: Make) -> Example:
    """Token pairs, laid out otherwise than nodes are indexed; what a query cannot see is no node."""
    is_padding = _is_padding()
    absent = is_padding[:, None, None, :, None] | is_padding[:, None, None, None, :]
    factors = (
        [make(N_ROWS, N_HEADS, N_TOKENS, N_TOKENS).masked_fill(absent[:, 0], 0) for _ in range(N_LAYERS)],
        [make(N_ROWS, N_HEADS, 1, N_TOKENS) for _ in range(N_LAYERS)],
    )
    hidden = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool).triu(1)
    order = (TOKENS, KEYS, HEADS)
    layers = [Layers(one) for one in factors]
    product = _product(
        layers, (HEADS, TOKENS, KEYS), order, absent=absent, not_nodes=hidden[None, None, None]
    )
    laid_out = torch.stack(factors[0], dim=1) * torch.stack(factors[1], dim=1)
    numbers = laid_out.permute(0, 1, 3, 4, 2)
    is_there = ~absent.expand(laid_out.shape).permute(0, 1, 3, 4, 2)
    return Example(product, numbers, numbers.masked_fill(hidden[..., None], 0), is_there)


def neurons_at_some_tokens(make: Make) -> Example:
    """Other tokens of each row, more of some than of others; the second row does not see the last layer."""
    is_used = torch.zeros(N_ROWS, N_TOKENS, dtype=torch.bool)
    tokens, is_own = _some_tokens(is_used)
    is_seen = torch.ones(N_ROWS, N_LAYERS, dtype=torch.bool)
    is_seen[1, -1] = False
    at_tokens = (
        make(N_ROWS, N_LAYERS, tokens.shape[1], WIDTH) * is_own[:, None, :, None] * is_seen[..., None, None]
    )
    absent = ~(is_own[:, None, :, None] & is_seen[..., None, None])
    factors = [Layers(at_tokens.unbind(1))]
    covering = {"tokens": tokens, "device_tokens": torch.from_numpy(tokens)}
    product = _product(factors, *[(TOKENS, NEURONS)] * 2, absent=absent, **covering)
    numbers = torch.zeros(N_ROWS, N_LAYERS, N_TOKENS, WIDTH, dtype=torch.float64)
    for row, covered in enumerate(COVERED):
        numbers[row, :, covered] = at_tokens[row, :, : len(covered)]
    is_there = (is_used[:, None, :, None] & is_seen[..., None, None]).expand(numbers.shape)
    return Example(product, numbers, numbers, is_there)


def _active(make: Make, n_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Activations of all latents [B, L, n_tokens, n], and the active ones side by side: which, and values."""
    dense = make(N_ROWS, N_LAYERS, n_tokens, N_LATENTS)
    dense = dense * (make(*dense.shape) > 0)
    width = max(1, int((dense != 0).sum(dim=-1).max()))
    ids = (dense != 0).to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :width]
    values = dense.gather(-1, ids)
    return dense, ids.masked_fill(values == 0, N_LATENTS - 1), values


def latents(make: Make) -> Example:
    """Active latents alone; all others are zeros that take places."""
    is_padding = _is_padding()[:, None, :, None]
    dense, ids, values = _active(make, N_TOKENS)
    dense, values = dense.masked_fill(is_padding, 0), values.masked_fill(is_padding, 0)
    product = _product(
        [Layers(values.unbind(1))],
        *[(TOKENS, LATENTS)] * 2,
        absent=is_padding,
        ids=Layers(ids.unbind(1)),
        n_latents=N_LATENTS,
    )
    return Example(product, dense, dense, ~is_padding.expand(dense.shape))


EXAMPLES = (neurons, pairs, neurons_at_some_tokens, latents)

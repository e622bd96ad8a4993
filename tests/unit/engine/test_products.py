"""Products in parts: every number in one part, sums and single nodes as if all had been written out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations

import pytest
import torch
from tdb_server.domain.node import Dimension
from tdb_server.engine import products
from tdb_server.engine.products import Layers, NodeCoordinates, Product
from torch import Tensor

from tests.unit.engine.example_products import (
    EXAMPLES,
    N_LAYERS,
    TOKENS,
    Example,
    Make,
    numbers_of,
)

LIMITS = (1, 40, 200, 2**20)


@pytest.fixture(params=LIMITS, autouse=True)
def max_together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(products.MAX_TOGETHER, "cpu", request.param)
    limit: int = request.param
    return limit


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest, max_together: int) -> Example:
    make_example: Callable[[Make], Example] = request.param
    return make_example(numbers_of(5, 6))


def subsets(order: tuple[Dimension, ...]) -> list[tuple[Dimension, ...]]:
    return list(chain.from_iterable(combinations(order, n) for n in range(len(order) + 1)))


def total_of(product: Product, keep: tuple[Dimension, ...]) -> Tensor:
    total = None
    for part in product.parts():
        total = product.add_sum(keep, part, product.numbers(part), total)
    assert total is not None
    return total


def test_parts_are_small(max_together: int, example: Example) -> None:
    """No part is larger than it may be, unless it is one token's; together they have every number once."""
    axis = 2 + example.product.axes.index(TOKENS)
    n_entries = 0
    for part in example.product.parts():
        numbers = example.product.numbers(part)
        assert numbers.shape == example.product.shape(part)
        assert numbers.numel() <= max_together or (numbers.shape[0], numbers.shape[axis]) == (1, 1)
        n_entries += numbers.numel()
    if example.product.tokens is None and example.product.ids is None:
        assert n_entries == example.numbers.numel()


def test_sums(example: Example) -> None:
    """Exact: the numbers are whole. Kept axes stand in node order, whatever the layout."""
    order = example.product.order
    for keep in subsets(order):
        away = [1, *(2 + axis for axis, one in enumerate(order) if one not in keep)]
        assert torch.equal(total_of(example.product, keep), example.numbers.sum(dim=away)), keep


def test_sums_leave_the_numbers_as_they_are(example: Example) -> None:
    before = [one.clone() for factor in example.product.factors for one in factor.tensors]
    for keep in subsets(example.product.order):
        total_of(example.product, keep)
    after = [one for factor in example.product.factors for one in factor.tensors]
    assert all(torch.equal(*one) for one in zip(before, after, strict=True))


def test_single_nodes(example: Example) -> None:
    """Also latents that are not active, which are zero, and what is not ranked as a node."""
    product = example.product
    where = (torch.ones_like(example.numbers) if product.tokens is None else example.is_there).nonzero()
    where = where[where[:, 1].argsort(stable=True)]  # in the order of layers
    rows, layers, *indices = where.unbind(1)
    by_axis = dict(zip(product.order, indices, strict=True))
    if product.tokens is not None:
        covered = torch.from_numpy(product.tokens)[rows]
        by_axis[TOKENS] = (covered == by_axis[TOKENS][:, None]).int().argmax(dim=1)
    ends = torch.bincount(layers, minlength=N_LAYERS).cumsum(0).tolist()
    spans = [
        (layer, slice(start, stop)) for layer, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    found = product.at(NodeCoordinates(rows, layers, spans), by_axis)
    assert torch.equal(found, example.numbers[tuple(where.T)])


def test_layers_are_joined_only_while_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.MAX_TOGETHER, "cpu", 24)
    joined = Layers([torch.zeros(2, 3)] * 4).together
    assert joined is not None
    assert joined.shape == (2, 4, 3)
    assert Layers([torch.zeros(2, 3)] * 5).together is None
    assert Layers([torch.zeros(2, 3), torch.zeros(2, 4)]).together is None


@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_what_stands_behind_coordinates(n_rows: int, n_tokens: int) -> None:
    """A row for each node, also where all layers, rows or tokens have the same."""
    make = numbers_of(0, None)
    tensors = [make(n_rows, n_tokens, 4) for _ in range(2)]
    rows, layers, tokens = (
        torch.tensor([0, n_rows - 1, 0]),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 0, n_tokens - 1]),
    )
    nodes = NodeCoordinates(rows, layers, [(0, slice(0, 1)), (1, slice(1, 3))])
    assert torch.equal(Layers(tensors).at(nodes, tokens), torch.stack(tensors)[layers, rows, tokens])

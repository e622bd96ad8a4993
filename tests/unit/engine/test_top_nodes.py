"""The best nodes of a product, whichever way they are found: what sorting all its numbers puts first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.node import Dimension
from tdb_server.engine import products
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.top_nodes import BestNodes, BlockMaxima, HostTop, Numbers, PlainTop, numbers_at_tokens
from tdb_server.engine.transfers import download
from torch import Tensor

from tests.property.requests import examples
from tests.unit.engine.example_products import (
    EXAMPLES,
    N_ROWS,
    NEURONS,
    TOKENS,
    Example,
    Make,
    neurons,
    numbers_of,
)

WAYS = (BlockMaxima, PlainTop)
Way = type[BlockMaxima] | type[PlainTop]


def best(
    way: Way,
    product: Product,
    ks: list[int],
    *,
    largest: bool,
    tokens: list[int] | None = None,
    first_layer: int = 0,
) -> list[BestNodes]:
    """What a way finds in all parts of a product."""
    top = way(product, ks, largest)
    for part in product.parts():
        seen, values = part.behind(first_layer), part.numbers()[:, max(0, first_layer - part.first_layer) :]
        if not values.shape[1]:
            continue
        ranked = product.ranked(values, seen, largest=largest)
        if tokens is not None:
            at_rows = np.array(tokens)[part.rows]
            top.add(numbers_at_tokens(product, seen, ranked, at_rows, largest=largest))
        else:
            top.add(Numbers(seen, ranked))
    return top.best(download(top.tensors()))


def sorted_nodes(
    example: Example, row: int, k: int, *, largest: bool, token: int | None, first_layer: int
) -> tuple[list[list[int]], list[int]]:
    """Nodes and ranks of the k best of all numbers of a row, the first of equals first, without zeros."""
    ranked, is_there = example.ranked[row].numpy(), example.is_there[row].numpy().copy()
    is_there[:first_layer] = False
    if token is not None:
        at_token = np.zeros_like(is_there)
        at_token[:, token] = True
        is_there &= at_token
    nodes = np.argwhere(is_there & ~np.isnan(ranked))
    values = ranked[tuple(nodes.T)]
    order = np.argsort(-values if largest else values, kind="stable")[:k]
    is_node = values[order] != 0
    return nodes[order][is_node].tolist(), np.flatnonzero(is_node).tolist()


def assert_sorted(way: Way, example: Example, ks: list[int], **asked: object) -> None:
    tokens, largest = asked.get("tokens"), bool(asked["largest"])
    first_layer = int(asked.get("first_layer", 0))  # type: ignore[call-overload]
    found = best(way, example.product, ks, **asked)  # type: ignore[arg-type]
    assert len(found) == len(ks)
    for row, (k, of_row) in enumerate(zip(ks, found, strict=True)):
        token = None if tokens is None else tokens[row]  # type: ignore[index]
        nodes, ranks = sorted_nodes(example, row, k, largest=largest, token=token, first_layer=first_layer)
        assert of_row.nodes.tolist() == nodes
        assert of_row.ranks.tolist() == ranks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make_example", EXAMPLES)
@examples(30)
@given(
    ks=st.lists(st.sampled_from([1, 2, 5, 20, 100, 10**6]), min_size=N_ROWS, max_size=N_ROWS),
    largest=st.booleans(),
    n_values=st.sampled_from([None, 2, 6]),
    max_together=st.sampled_from([1, 40, 200, 2**20]),
    tokens=st.none() | st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3)).map(list),
    first_layer=st.sampled_from([0, 0, 1, 2]),
    seed=st.integers(0, 1000),
)
def test_what_sorting_finds(
    way: Way,
    make_example: Callable[[Make], Example],
    ks: list[int],
    largest: bool,
    n_values: int | None,
    max_together: int,
    tokens: list[int] | None,
    first_layer: int,
    seed: int,
) -> None:
    """Of equals the first by layer and index; zeros take places, padding and unseen layers do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(products.MAX_TOGETHER, "cpu", max_together)
        example = make_example(numbers_of(seed, n_values))
        assert_sorted(way, example, ks, largest=largest, tokens=tokens, first_layer=first_layer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("tokens", [None, [2, 2, 2]])
@pytest.mark.parametrize("has_ties", [True, False])
def test_what_is_not_a_number_is_never_chosen(
    way: Way, largest: bool, tokens: list[int] | None, has_ties: bool
) -> None:
    """It takes no place either; other rows do not notice."""
    example = neurons(numbers_of(0, 6))
    broken = [one.clone() for one in example.product.factors[0].tensors]
    broken[1][0, 1:3], broken[0][2, 2, 4] = torch.nan, torch.nan
    factors = Layers(broken), example.product.factors[1]
    product = replace(example.product, factors=factors, has_ties=has_ties)
    numbers = torch.stack(broken, dim=1) * example.product.factors[1].together  # type: ignore[operator]
    for k in (1, 20, 10**6):
        assert_sorted(
            way,
            Example(product, numbers, numbers, example.is_there),
            [k] * N_ROWS,
            largest=largest,
            tokens=tokens,
        )


def without_layers(values: Tensor, **more: object) -> Product:
    """Numbers [B, T, n] that no layer has."""
    n_rows, n_tokens, _ = values.shape
    axes = (TOKENS, Dimension.VOCAB_SIZE)
    lengths = (n_tokens,) * n_rows
    return Product((Layers([values]),), (None,), axes, axes, n_rows, n_tokens, lengths, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("max_together", [2**20, 20, 7])
def test_what_has_no_layers(monkeypatch: pytest.MonkeyPatch, largest: bool, max_together: int) -> None:
    """Each row as long as it is, whatever its company; its own k."""
    monkeypatch.setitem(products.MAX_TOGETHER, "cpu", max_together)
    values, lengths, ks = numbers_of(3, None)(3, 4, 5), [4, 2, 3], [3, 100, 1]
    product = without_layers(values)
    top = HostTop(product, ks, lengths, largest)
    for part in product.parts():
        top.add(Numbers(part, part.numbers()))
    for row, found in enumerate(top.best(download(top.tensors()))):
        own = values[row, : lengths[row]]
        expected = own.flatten().sort(descending=largest).values[: ks[row]]
        assert torch.equal(own[tuple(torch.from_numpy(found.nodes[:, 1:].T))], expected)
        assert (found.nodes[:, 0] == -1).all()
        assert found.ranks.tolist() == list(range(len(expected)))


@pytest.mark.parametrize("max_together", [2**20, 7])
def test_one_token_of_what_has_no_layers(monkeypatch: pytest.MonkeyPatch, max_together: int) -> None:
    """Of a token that is not covered there is nothing."""
    monkeypatch.setitem(products.MAX_TOGETHER, "cpu", max_together)
    values, covered = numbers_of(4, None)(2, 2, 5), np.array([[1, 1], [0, 3]])
    values[0, 1] = 0  # padding
    product = without_layers(values, tokens=covered, device_tokens=torch.from_numpy(covered))
    top = HostTop(product, [5, 5], [1, 2], largest=True)
    for part in product.parts():
        at_rows = np.array([1, 1])[part.rows]
        top.add(numbers_at_tokens(product, part, part.numbers(), at_rows, largest=True))
    found, nothing = top.best(download(top.tensors()))
    order = values[0, 0].argsort(descending=True)
    assert found.nodes.tolist() == [[-1, 1, token] for token in order.tolist()]
    assert nothing.nodes.shape == (0, 3)


def test_zeros_of_what_has_no_layers_take_places() -> None:
    product = without_layers(torch.tensor([[[2.0, 0.0, -1.0, 0.0, 3.0]]]))
    top = HostTop(product, [5], [1], largest=True)
    for part in product.parts():
        top.add(Numbers(part, part.numbers()))
    (found,) = top.best(download(top.tensors()))
    assert found.nodes.tolist() == [[-1, 0, 4], [-1, 0, 0], [-1, 0, 2]]
    assert found.ranks.tolist() == [0, 1, 4]


def test_those_among_fewer_than_were_ranked() -> None:
    """Rows of one batch ask for different numbers of nodes."""
    nodes = np.arange(6).reshape(3, 2)
    assert BestNodes(nodes, np.array([0, 1, 4])).first(4).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 100])
def test_many_equals_are_known(largest: bool, k: int) -> None:
    """Where many are known to be equal and best, as first tokens' attention is, none is ranked again."""
    example = neurons(numbers_of(1, 2))
    product = replace(example.product, has_ties=True)
    assert_sorted(PlainTop, replace(example, product=product), [k] * N_ROWS, largest=largest)


def test_only_ties_at_the_end_are_ranked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To rank again waits for the device, so padding and what is not seen must not look like ties."""
    monkeypatch.setattr(PlainTop, "_ranked_again", None)
    for make_example in EXAMPLES:
        example = make_example(numbers_of(0, None))
        assert_sorted(PlainTop, example, [40] * N_ROWS, largest=True)
        assert_sorted(PlainTop, example, [40] * N_ROWS, largest=False)


def test_neurons_are_ranked_by_neuron() -> None:
    """The indices of nodes stand in node order behind the layer."""
    values = torch.zeros(1, 2, 3)
    values[0, 1, 2] = 5.0
    axes = (TOKENS, NEURONS)
    product = Product((Layers([values, values * 2]),), (0, 1), axes, axes, 1, 2, (2,))
    for way in WAYS:
        (found,) = best(way, product, [5], largest=True)
        assert found.nodes.tolist() == [[1, 1, 2], [0, 1, 2]]

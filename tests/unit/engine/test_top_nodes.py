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
from tdb_server.engine.top_nodes import BestNodes, TopNodes
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


def best(
    product: Product,
    ks: list[int],
    *,
    largest: bool,
    tokens: list[int] | None = None,
    first_layer: int = 0,
) -> list[BestNodes]:
    """What is found in all parts of a product."""
    if tokens is not None:
        product = product.at_tokens(np.array(tokens))
    top = TopNodes(product, ks, largest, first_layer)
    for part in product.parts():
        top.add(part, product.numbers(part))
    return top.best(download(top.tensors))


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


def assert_sorted(example: Example, ks: list[int], **asked: object) -> None:
    tokens, largest = asked.get("tokens"), bool(asked["largest"])
    first_layer = int(asked.get("first_layer", 0))  # type: ignore[call-overload]
    found = best(example.product, ks, **asked)  # type: ignore[arg-type]
    assert len(found) == len(ks)
    for row, (k, of_row) in enumerate(zip(ks, found, strict=True)):
        token = None if tokens is None else tokens[row]  # type: ignore[index]
        nodes, ranks = sorted_nodes(example, row, k, largest=largest, token=token, first_layer=first_layer)
        assert of_row.nodes.tolist() == nodes
        assert of_row.ranks.tolist() == ranks


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
        assert_sorted(example, ks, largest=largest, tokens=tokens, first_layer=first_layer)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("tokens", [None, [2, 2, 2]])
@pytest.mark.parametrize("n_ties", [0, 4])
def test_what_is_not_a_number_is_never_chosen(largest: bool, tokens: list[int] | None, n_ties: int) -> None:
    """It takes no place either; other rows do not notice."""
    example = neurons(numbers_of(0, 6))
    broken = [one.clone() for one in example.product.factors[0].tensors]
    broken[1][0, 1:3], broken[0][2, 2, 4] = torch.nan, torch.nan
    factors = Layers(broken), example.product.factors[1]
    product = replace(example.product, factors=factors, n_ties=n_ties)
    numbers = torch.stack(broken, dim=1) * example.product.factors[1].together  # type: ignore[operator]
    for k in (1, 20, 10**6):
        assert_sorted(
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
    is_padding = torch.arange(4) >= torch.tensor(lengths)[:, None]
    product = without_layers(values, absent=is_padding[:, None, :, None])
    for row, found in enumerate(best(product, ks, largest=largest)):
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
    absent = torch.tensor([[False, True], [False, False]])[:, None, :, None]
    product = without_layers(values, tokens=covered, device_tokens=torch.from_numpy(covered), absent=absent)
    found, nothing = best(product, [5, 5], largest=True, tokens=[1, 1])
    order = values[0, 0].argsort(descending=True)
    assert found.nodes.tolist() == [[-1, 1, token] for token in order.tolist()]
    assert nothing.nodes.shape == (0, 3)


def test_zeros_of_what_has_no_layers_take_places() -> None:
    product = without_layers(torch.tensor([[[2.0, 0.0, -1.0, 0.0, 3.0]]]))
    (found,) = best(product, [5], largest=True)
    assert found.nodes.tolist() == [[-1, 0, 4], [-1, 0, 0], [-1, 0, 2]]
    assert found.ranks.tolist() == [0, 1, 4]


def test_those_among_fewer_than_were_ranked() -> None:
    """Rows of one batch ask for different numbers of nodes."""
    nodes = np.arange(6).reshape(3, 2)
    assert BestNodes(nodes, np.array([0, 1, 4])).first(4).tolist() == [[0, 1], [2, 3]]


def test_of_equals_that_no_layer_has_those_that_topk_finds_first() -> None:
    """Every embedding's "activation" is 1: which of them are listed is decided by that, in each row alone."""
    values, lengths = torch.ones(2, 30, 1), (30, 17)
    is_padding = torch.arange(30) >= torch.tensor(lengths)[:, None]
    for row, found in enumerate(
        best(without_layers(values, absent=is_padding[:, None, :, None]), [5, 5], largest=True)
    ):
        assert found.nodes[:, 1].tolist() == torch.ones(lengths[row]).topk(5).indices.tolist()


def looked_through_again(monkeypatch: pytest.MonkeyPatch, product: Product, k: int, *, largest: bool) -> int:
    """How many parts' numbers are computed again. For that a GPU is waited for."""
    asked = []
    monkeypatch.setattr(Product, "numbers", lambda self, part: asked.append(part) or numbers(self, part))
    best(product, [k] * N_ROWS, largest=largest)
    monkeypatch.setattr(Product, "numbers", numbers)
    return len(asked) - len(list(product.parts()))


numbers = Product.numbers


def test_only_ties_at_the_end_are_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and what is not seen must not look like ties."""
    for make_example in EXAMPLES:
        product = make_example(numbers_of(0, None)).product
        for largest in (True, False):
            assert looked_through_again(monkeypatch, product, 40, largest=largest) == 0
    tied = neurons(numbers_of(1, 2)).product
    assert looked_through_again(monkeypatch, tied, 3, largest=True) == 1


def test_equals_that_are_known_are_not_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As first tokens' attention to themselves, in every head."""
    values = torch.rand(N_ROWS, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    values[:, :, 0] = 1
    layers, axes = Layers(values.unbind(1)), (TOKENS, NEURONS)
    product = Product((layers,), (0, 1, 2), axes, axes, N_ROWS, 5, (5,) * N_ROWS, n_ties=4)
    for k in (1, 7, 12, 13):
        assert looked_through_again(monkeypatch, product, k, largest=True) == 0
        for found in best(product, [k] * N_ROWS, largest=True):
            expected = [[layer, 0, neuron] for layer in range(3) for neuron in range(4)]
            assert found.nodes[:12].tolist() == expected[:k]


def test_neurons_are_ranked_by_neuron() -> None:
    """The indices of nodes stand in node order behind the layer."""
    values = torch.zeros(1, 2, 3)
    values[0, 1, 2] = 5.0
    axes = (TOKENS, NEURONS)
    product = Product((Layers([values, values * 2]),), (0, 1), axes, axes, 1, 2, (2,))
    (found,) = best(product, [5], largest=True)
    assert found.nodes.tolist() == [[1, 1, 2], [0, 1, 2]]

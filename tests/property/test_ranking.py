"""The shortcuts taken to rank a few of very many numbers find what sorting all of them finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension, NodeIndex
from tdb_server.domain.requests import InferenceSubRequest, MultipleTopKSpec
from tdb_server.engine.block_maxima import top_k_per_row
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.top_nodes import BestNodes, TopNodes
from tdb_server.engine.transfers import download
from torch import Tensor

from tests.property.requests import answers_of_calls, every_node, examples, inference, numbers_by_node
from tests.property.small_models import small_model

AXES = (Dimension.SEQUENCE_TOKENS, Dimension.MLP_ACTS)
SIZES = st.sampled_from([1, 2, 7, 63, 64, 65, 640, 8191, 8193, 20_001])


def random_numbers(shape: tuple[int, ...], seed: int, n_values: int | None) -> Tensor:
    """Normal numbers; with `n_values`, so many different ones, zero among them, so that many tie."""
    generator = torch.Generator().manual_seed(seed)
    if n_values is None:
        return torch.randn(*shape, generator=generator)
    return torch.randint(-(n_values // 2), n_values // 2 + 1, shape, generator=generator).float()


TIES = st.sampled_from([None, 2, 6, 1000])


@examples(150)
@given(
    n_rows=st.sampled_from([1, 3]),
    n_columns=SIZES,
    k=st.sampled_from([1, 2, 10, 100]),
    largest=st.booleans(),
    n_values=TIES,
    block=st.sampled_from([None, 1, 4, 64]),
    seed=st.integers(0, 1000),
)
def test_top_k_per_row(
    n_rows: int, n_columns: int, k: int, largest: bool, n_values: int | None, block: int | None, seed: int
) -> None:
    k = min(k, n_columns)
    scores = random_numbers((n_rows, n_columns), seed, n_values)
    values, indices = top_k_per_row(scores, k, largest, block)
    expected = scores.sort(dim=1, descending=largest).values[:, :k]
    assert torch.equal(values, expected)
    assert torch.equal(scores.gather(1, indices), expected)
    assert all(len(set(row)) == k for row in indices.tolist())


@examples(40)
@given(
    sizes=st.lists(st.sampled_from([1, 200, 8_000, 12_345]), min_size=3, max_size=3),
    ks=st.lists(st.sampled_from([1, 3, 12, 50, 2000]), min_size=3, max_size=3),
    largest=st.booleans(),
    n_values=TIES,
    shift=st.sampled_from([-1000, 0, 1000]),
    seed=st.integers(0, 1000),
)
def test_best_nodes_of_several_layers(
    sizes: list[int],
    ks: list[int],
    largest: bool,
    n_values: int | None,
    shift: int,
    seed: int,
) -> None:
    """Of rows that want different numbers of them, in layers large enough for blocks."""
    layers = [random_numbers((3, 1, size), seed + n, n_values) + shift for n, size in enumerate(sizes)]
    product = Product((Layers(layers),), tuple(range(3)), AXES, AXES, 3, 1, (1, 1, 1))
    for row, found in enumerate(best_nodes(product, ks, largest)):
        values = np.concatenate([one[row, 0].numpy() for one in layers])
        nodes = np.concatenate(
            [
                np.stack([np.full(size, layer), np.zeros(size, int), np.arange(size)], axis=1)
                for layer, size in enumerate(sizes)
            ]
        )
        order = np.argsort(-values if largest else values, kind="stable")[: ks[row]]
        assert np.array_equal(found.nodes, nodes[order[values[order] != 0]])


def best_nodes(product: Product, ks: Sequence[int], largest: bool) -> list[BestNodes]:
    top = TopNodes(product, ks, largest)
    for part in product.parts():
        top.add(part, product.numbers(part))
    return top.best(download(top.tensors))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("k", [1, 20, 100_000])
def test_layers_without_numbers_are_left_out(largest: bool, k: int) -> None:
    numbers = random_numbers((1, 1, 20_000), 0, None)
    layers = Layers([torch.full_like(numbers, torch.nan), numbers])
    product = Product((layers,), (0, 1), AXES, AXES, 1, 1, (1,))
    (found,) = best_nodes(product, [k], largest)
    expected = numbers[0, 0].sort(descending=largest, stable=True).indices[:k]
    assert found.nodes[:, 2].tolist() == expected.tolist()
    assert (found.nodes[:, 0] == 1).all()
    (nothing,) = best_nodes(replace(product, factors=(Layers([layers.tensors[0]] * 2),)), [k], largest)
    assert nothing.nodes.shape == (0, 3)


@pytest.mark.parametrize("name", ["ATTN_KEY", "ATTN_VALUE", "ATTN_QUERY", "ATTN_QK_PROBS", "MLP_POST_ACT"])
@pytest.mark.parametrize("tokens", [(2, 1), (4, 0)])
def test_nodes_of_one_token(name: str, tokens: tuple[int, int]) -> None:
    """Also of keys and values, whose token is the one that is attended to; in rows of unlike lengths."""
    spec = every_node(DerivedScalar[name])

    def run(*specs: MultipleTopKSpec) -> list[dict[NodeIndex, float]]:
        prompts = zip([(8, 30, 21, 55, 7), (9, 12)], specs, strict=True)
        calls = [[InferenceSubRequest(inference(one), {"nodes": spec})] for one, spec in prompts]
        answers = answers_of_calls(small_model("llama").engine(), calls)
        return [numbers_by_node(found.top_k("nodes")) for (found,) in answers]

    at_one = run(*(replace(spec, token_index=one) for one in tokens))
    for found, of_all, token in zip(at_one, run(spec, spec), tokens, strict=True):
        expected = {node: one for node, one in of_all.items() if node.tensor_indices[0] == token}
        assert expected
        assert found == expected

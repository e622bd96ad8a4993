"""A layer at some tokens at a time: the same sums, the same best nodes, in the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import Dimension
from tdb_server.scalars import token_parts as token_parts_module
from tdb_server.scalars.latents import SparseLatents
from tdb_server.scalars.layer_stacks import LayerStack, stack_layers
from tdb_server.scalars.node_ranking import NodeRanking
from tdb_server.scalars.scalar_values import DenseScalars, ScalarValues, SparseScalars
from tdb_server.scalars.token_parts import token_parts

QUERIES, KEYS, HEADS = (
    Dimension.SEQUENCE_TOKENS,
    Dimension.ATTENDED_TO_SEQUENCE_TOKENS,
    Dimension.ATTN_HEADS,
)
N_HEADS, N_TOKENS = 3, 11
KEPT = [(), (QUERIES,), (KEYS,), (QUERIES, KEYS), (QUERIES, KEYS, HEADS), (HEADS,)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_parts_module, "MAX_ENTRIES", 100)


def layer(seed: int, tokens: torch.Tensor | None = None, *, masked: bool = False) -> DenseScalars:
    """Small whole numbers: many are equal, and all sums exact. A broadcast factor beside a whole one."""
    generator = torch.Generator().manual_seed(seed)
    n_covered = N_TOKENS if tokens is None else len(tokens)
    factors = [
        torch.randint(-4, 5, shape, generator=generator).float()
        for shape in ((N_HEADS, n_covered, N_TOKENS), (N_HEADS, 1, N_TOKENS))
    ]
    not_nodes = torch.ones(n_covered, N_TOKENS, dtype=torch.bool).triu(1) if masked else None
    return DenseScalars(factors, (HEADS, QUERIES, KEYS), (QUERIES, KEYS, HEADS), N_TOKENS, tokens, not_nodes)


LAYERS = {
    "every token": layer(0),
    "masked": layer(1, masked=True),
    "some tokens": layer(2, torch.tensor([0, 1, 4, 5, 6, 9])),
}


def stack_of(values: ScalarValues) -> LayerStack:
    (stack,) = stack_layers([(4, values)])
    return stack


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("keep", KEPT)
def test_sums(name: str, keep: tuple[Dimension, ...]) -> None:
    values = stack_of(LAYERS[name]).values
    parts = token_parts(values)
    assert len(parts) > 1
    total = None
    for part in parts:
        total = part.add_sum(keep, total)
    assert total is not None
    torch.testing.assert_close(total, values.add_sum(keep), rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("token_index", [None, 4, 10])
def test_best_nodes(name: str, largest: bool, token_index: int | None) -> None:
    """Also of equals, of which there are many, the same ones."""
    stack = stack_of(LAYERS[name])
    found = []
    for values in ([stack.values], token_parts(stack.values)):
        ranking = NodeRanking(DerivedScalar.UNFLATTENED_ATTN_ACT_TIMES_GRAD, largest, token_index, 20)
        for part in values:
            ranking.add(LayerStack(stack.layers, part))
        found.append(ranking.best(20))
    assert found[0] == found[1]
    assert (len(found[0]) > 0) == (name != "some tokens" or token_index != 10)


def test_few_numbers_are_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_parts_module, "MAX_ENTRIES", N_HEADS * N_TOKENS**2)
    values = stack_of(LAYERS["every token"]).values
    assert token_parts(values) == [values]


def test_sparse_numbers_are_one_part() -> None:
    active = SparseLatents(torch.tensor([[0, 3], [2, 1]]), torch.ones(2), (N_TOKENS, 500))
    values = SparseScalars(active, torch.ones(2))
    assert token_parts(values) == [values]
    assert np.isclose(float(values.add_sum(())), 2)

"""Searching the vocabulary in 8 bits finds what scoring every token finds.

Products of 8-bit integers are oneDNN's where they are right, and the plain ones, which are right everywhere.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.engine.quantized_scores import Int8Product, plain_int8_product
from tdb_server.engine.vocabulary_search import VocabularySearch
from torch import Tensor

from tests.int8_products import RIGHT_PRODUCTS
from tests.property.requests import examples

D_MODEL = 24


def vocabulary_of(kind: str, n_tokens: int, generator: torch.Generator) -> Tensor:
    """Vectors that quantize well, badly, or not at all, and vectors that tie."""
    vectors = torch.randn(n_tokens, D_MODEL, generator=generator)
    match kind:
        case "loud channel":
            vectors[:, 3] *= 1000
        case "loud token":
            vectors[5] *= 300
        case "common mean":
            vectors += 50
        case "few distinct":
            vectors = vectors[torch.randint(0, 5, (n_tokens,), generator=generator)]
        case "all equal":
            vectors = vectors[:1].expand(n_tokens, -1).clone()
        case "nearly tied":
            vectors = vectors[:1] + 1e-4 * vectors
    return vectors


KINDS = ["plain", "loud channel", "loud token", "common mean", "few distinct", "all equal", "nearly tied"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("product", RIGHT_PRODUCTS)
@examples(8)
@given(
    n_tokens=st.sampled_from([4096, 4097, 5000, 8192, 8193, 20_011]),
    k=st.sampled_from([1, 2, 10, 15, 60]),
    n_directions=st.sampled_from([1, 3, 64, 65, 256, 512]),
    n_excluded=st.sampled_from([0, 1, 70]),
    has_zero=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_search(
    product: Int8Product,
    kind: str,
    n_tokens: int,
    k: int,
    n_directions: int,
    n_excluded: int,
    has_zero: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = vocabulary_of(kind, n_tokens, generator)
    excluded = torch.randperm(n_tokens, generator=generator)[:n_excluded]
    directions = torch.randn(n_directions, D_MODEL, generator=generator)
    search = VocabularySearch(vocabulary, excluded if n_excluded else None, product)
    quantized = search.quantized
    exact_in_8_bits = torch.randint(0, 2, (D_MODEL,), generator=generator) * 2.0 - 1
    directions[-1] = (
        exact_in_8_bits / quantized.steps
    ) @ quantized.rotation.T  # all error is the vocabulary's
    directions[0] *= 0 if has_zero else 1e-6
    found = search.rank(directions, k)

    scores = directions @ vocabulary.T
    limit = 1e-5 * directions.norm(dim=1, keepdim=True) * vocabulary.norm(dim=1).max()
    for largest, values, ids in ((True, found.high, found.high_ids), (False, found.low, found.low_ids)):
        ranked = scores.index_fill(1, excluded, -torch.inf if largest else torch.inf)
        expected = ranked.topk(k, dim=1, largest=largest).values
        assert ((values - expected).abs() <= limit).all()
        assert ((ranked.gather(1, ids.long()) - expected).abs() <= limit).all()
        assert all(len(set(row)) == k for row in ids.tolist())


def test_a_direction_of_no_numbers_spoils_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = torch.randn(8192, D_MODEL, generator=generator)
    directions = torch.randn(5, D_MODEL, generator=generator)
    search = VocabularySearch(vocabulary, product=plain_int8_product)
    alone = search.rank(directions[[0, 2, 4]], 10)
    directions[1], directions[3, 0] = torch.nan, torch.inf
    found = search.rank(directions, 10)
    for name, expected in alone._asdict().items():
        assert torch.equal(getattr(found, name)[[0, 2, 4]], expected)

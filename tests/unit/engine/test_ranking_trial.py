"""Which way of ranking is used goes by what was measured, whatever the processor says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch
from tdb_server.domain.model_info import KernelOutcome
from tdb_server.engine.quantized_scores import Int8Product, plain_int8_product
from tdb_server.engine.ranking_trial import choose_ranking
from tdb_server.engine.token_ranking import ExactRanking
from tdb_server.engine.vocabulary_search import VocabularySearch
from tdb_server.errors import ModelError
from torch import Tensor

from tests.int8_products import RIGHT_PRODUCTS


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


VOCABULARY, DIRECTIONS = numbers(8192, 16), numbers(64, 16)


def slow(tokens: Tensor, directions: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Like a library without a kernel: as many times slower as there are tokens."""
    time.sleep(len(tokens) * 1e-3)
    return plain_int8_product(tokens, directions, scales, dtype)


def overflowing(tokens: Tensor, directions: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Like a processor without VNNI: sums of two products stop at the ends of 16 bits."""
    pairs = (tokens.double()[:, None] * directions.double()).unflatten(-1, (-1, 2)).sum(-1)
    exact = pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * directions.double().sum(-1)
    scaled = exact * scales
    return scaled.round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else scaled.to(dtype)


def missing(*_: object) -> Tensor:
    raise RuntimeError("onednn::qlinear_pointwise: no such operation")


@pytest.mark.parametrize(
    ("product", "outcome"),
    [
        (slow, KernelOutcome.STOPPED),
        (overflowing, KernelOutcome.WRONG),
        (missing, KernelOutcome.FAILED),
    ],
)
def test_what_is_slow_or_wrong_is_not_used(product: Int8Product, outcome: KernelOutcome) -> None:
    ranking, choice = choose_ranking(VOCABULARY, None, DIRECTIONS, product=product)
    assert isinstance(ranking, ExactRanking)
    assert (choice.chosen, choice.is_configured) == ("exact", False)
    assert [one.outcome for one in choice.trials] == [KernelOutcome.CHOSEN, outcome]
    assert outcome.value in str(choice)


def test_a_slow_product_is_stopped_before_it_has_cost_much() -> None:
    asked = []

    def counted(tokens: Tensor, *others: object) -> Tensor:
        asked.append(len(tokens))
        return slow(tokens, *others)  # type: ignore[arg-type]

    choose_ranking(VOCABULARY, None, DIRECTIONS, product=counted)
    assert sum(asked) < len(VOCABULARY) / 2


@pytest.mark.parametrize("product", RIGHT_PRODUCTS)
def test_the_search_is_used_when_named_however_slow(product: Int8Product) -> None:
    ranking, choice = choose_ranking(VOCABULARY, None, DIRECTIONS, "int8", product)
    assert isinstance(ranking, VocabularySearch)
    assert (choice.chosen, choice.is_configured) == ("int8", True)
    expected = ExactRanking(VOCABULARY).rank(DIRECTIONS, 10)
    assert torch.equal(ranking.rank(DIRECTIONS, 10).high_ids, expected.high_ids)


def test_the_plain_way_is_used_when_named_and_nothing_is_tried() -> None:
    ranking, choice = choose_ranking(VOCABULARY, None, DIRECTIONS, "exact", missing)
    assert isinstance(ranking, ExactRanking)
    assert (choice.chosen, choice.is_configured, len(choice.trials)) == ("exact", True, 1)


@pytest.mark.parametrize(
    ("vocabulary", "product", "reason"),
    [
        (VOCABULARY, overflowing, "wrong numbers"),
        (VOCABULARY, missing, "fails"),
        (VOCABULARY.double(), plain_int8_product, "float64"),
    ],
)
def test_a_named_way_that_cannot_be_had_is_refused(
    vocabulary: Tensor, product: Int8Product, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        choose_ranking(vocabulary, None, DIRECTIONS.to(vocabulary.dtype), "int8", product)


def test_few_tokens_are_all_scored() -> None:
    ranking, _ = choose_ranking(VOCABULARY[:1000], None, DIRECTIONS)
    assert isinstance(ranking, ExactRanking)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_the_ranking_is_right_with_every_set_of_instructions(isa: str) -> None:
    """oneDNN takes other kernels when told that the processor has fewer instructions."""
    script = """
import torch
from tdb_server.engine.ranking_trial import choose_ranking
from tdb_server.engine.token_ranking import ExactRanking
vocabulary, directions = torch.randn(20_000, 96), torch.randn(70, 96)
ranking, choice = choose_ranking(vocabulary, None, directions)
expected = ExactRanking(vocabulary).rank(directions, 10)
torch.testing.assert_close(ranking.rank(directions, 10).high, expected.high, rtol=1e-4, atol=1e-4)
print(choice)
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "rank_tokens: " in run.stdout

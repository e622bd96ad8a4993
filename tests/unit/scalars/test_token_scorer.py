"""What the scorer remembers is what it would compute again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.domain.results import TopTokens
from tdb_server.scalars.token_scores import Scoring, TokenScorer
from torch import Tensor

from tests.property.small_models import small_model

N_TOKENS = 7


def directions(n: int, seed: int = 0) -> Tensor:
    d_model = small_model("gpt2").config.d_model
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal(one: TopTokens, other: TopTokens) -> None:
    for name in ("top_ids", "top_scalars", "top_normalized", "bottom_ids", "bottom_scalars"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


def scorer(max_remembered: int = 1000) -> TokenScorer:
    return TokenScorer(small_model("gpt2").decoder, max_remembered=max_remembered)


def score(with_scorer: TokenScorer, vectors: Tensor, scales: Tensor, n: int, *, is_output: bool) -> TopTokens:
    return next(with_scorer.score([Scoring(vectors, scales, n, is_output)]))


@pytest.mark.parametrize("max_remembered", [0, 3, 1000])
@pytest.mark.parametrize("is_output", [True, False])
def test_asking_again_gives_the_same(is_output: bool, max_remembered: int) -> None:
    """Also when only some directions are remembered, and when a direction stands there several times."""
    vectors = directions(5)[[0, 1, 2, 1, 3, 4, 0]]
    scales = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    remembering = scorer(max_remembered)
    for rows in ([0, 1, 2], [2, 3, 4], list(range(7)), [6, 5]):
        again, fresh = (
            score(one, vectors[rows], scales[rows], N_TOKENS, is_output=is_output)
            for one in (remembering, scorer())
        )
        assert_equal(again, fresh)


def test_scored_together_is_scored_alone() -> None:
    """Of several kinds, with directions in common, and one kind without any."""
    vectors, scales = directions(5), torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    scorings = [
        Scoring(vectors, scales, N_TOKENS, is_output=True),
        Scoring(vectors[:0], scales[:0], N_TOKENS, is_output=False),
        Scoring(vectors[1:], scales[1:], N_TOKENS, is_output=False),
        Scoring(vectors[:2], scales[:2], 3, is_output=True),
    ]
    together = list(scorer().score(scorings))
    assert together[1].top_ids.shape[0] == 0
    for one, scoring in zip(together, scorings, strict=True):
        if len(scoring.vectors):
            assert_equal(one, next(scorer().score([scoring])))


def test_writes_and_reads_and_list_lengths_are_kept_apart() -> None:
    vectors, ones, remembering = directions(2), torch.ones(2, dtype=torch.float64), scorer()
    score(remembering, vectors, ones, 3, is_output=True)
    gained = vectors * small_model("gpt2").decoder.weights.final_norm.gain
    again, fresh = (score(one, gained, ones, 3, is_output=False) for one in (remembering, scorer()))
    assert_equal(again, fresh)
    assert score(remembering, vectors, ones, 5, is_output=True).top_ids.shape == (2, 5)


def test_a_negative_scale_swaps_the_ends() -> None:
    vectors = directions(1)
    up, down = (
        score(scorer(), vectors, torch.tensor([by], dtype=torch.float64), 4, is_output=True)
        for by in (2.0, -2.0)
    )
    np.testing.assert_array_equal(up.top_ids, down.bottom_ids)
    np.testing.assert_array_equal(up.bottom_ids, down.top_ids)
    np.testing.assert_allclose(up.top_scalars, -down.bottom_scalars)
    assert (np.diff(down.top_scalars) <= 0).all()
    assert max(down.top_normalized[0, 0], -down.bottom_normalized[0, 0]) == 1.0

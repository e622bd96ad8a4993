"""Tokens ranked along directions: what is remembered, or ranked at once, is what would be computed again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tdb_server.domain.results import TopTokens
from tdb_server.engine.rank_tokens import DirectionsToRank, TokenRanker, scaled
from tdb_server.engine.token_ranking import RankedTokens
from torch import Tensor

from tests.property.small_models import VOCABULARY_SIZE, small_model

N_TOKENS = 7
DECODER = small_model("gpt2").decoder


def directions(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, DECODER.config.d_model, generator=generator, dtype=torch.float64)


def to_rank(
    vectors: Tensor, scales: Sequence[float], n: int = N_TOKENS, *, is_output: bool = True
) -> DirectionsToRank:
    """Each vector is a node's own."""
    by = torch.tensor(scales, dtype=torch.float64)
    return DirectionsToRank(vectors, np.arange(len(vectors)), by, n, is_output)


def ranker(
    max_remembered: int = 1000, *, remembers: bool = True, excluded: Sequence[int] = ()
) -> TokenRanker:
    found = TokenRanker(DECODER, excluded, max_remembered)
    found.remembers = remembers
    return found


def assert_equal(one: TopTokens, other: TopTokens) -> None:
    for name in (
        "top_ids",
        "top_scalars",
        "top_normalized",
        "bottom_ids",
        "bottom_scalars",
        "bottom_normalized",
    ):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)


WAYS = pytest.mark.parametrize("remembers", [True, False])


@WAYS
@pytest.mark.parametrize("is_output", [True, False])
def test_lists_are_both_ends_of_all_scores(remembers: bool, is_output: bool) -> None:
    """Of writes, through the final norm's gain, less the mean over the vocabulary."""
    vectors, scales = directions(3), [2.0, -0.5, 1.0]
    (found,) = ranker(remembers=remembers).token_lists([to_rank(vectors, scales, is_output=is_output)])
    if is_output:
        scores = (vectors * DECODER.final_norm.gain) @ DECODER.unembedding.T
        scores = scores - scores.mean(dim=1, keepdim=True)
    else:
        scores = vectors @ DECODER.token_embedding.T
    scores = scores * torch.tensor(scales)[:, None]
    for ids, numbers, normalized, is_top in (
        (found.top_ids, found.top_scalars, found.top_normalized, True),
        (found.bottom_ids, found.bottom_scalars, found.bottom_normalized, False),
    ):
        expected = scores.sort(dim=1, descending=is_top)
        np.testing.assert_array_equal(ids, expected.indices[:, :N_TOKENS])
        np.testing.assert_allclose(numbers, expected.values[:, :N_TOKENS])
        leading = scores.abs().amax(dim=1, keepdim=True)
        np.testing.assert_allclose(normalized, expected.values[:, :N_TOKENS] / leading)


@pytest.mark.parametrize("max_remembered", [0, 3, 1000])
@pytest.mark.parametrize("is_output", [True, False])
def test_asking_again_gives_the_same(is_output: bool, max_remembered: int) -> None:
    """Also when only some directions are remembered, and when a direction stands there several times."""
    vectors = directions(5)[[0, 1, 2, 1, 3, 4, 0]]
    scales = np.array([1.0, -2.0, 0.5, 3.0, 0.0, -1.0, 2.0])
    remembering = ranker(max_remembered)
    for rows in ([0, 1, 2], [2, 3, 4], list(range(7)), [6, 5]):
        asked = to_rank(vectors[rows], scales[rows].tolist(), is_output=is_output)
        (again,), (fresh,) = remembering.token_lists([asked]), ranker().token_lists([asked])
        assert_equal(again, fresh)


@WAYS
def test_nodes_that_write_along_one_direction_share_its_ranking(remembers: bool) -> None:
    vectors, which, by = directions(2), [1, 0, 1, 1], [1.0, 2.0, -3.0, 0.5]
    shared = DirectionsToRank(
        vectors, np.array(which), torch.tensor(by, dtype=torch.float64), N_TOKENS, is_output=True
    )
    (found,) = ranker(remembers=remembers).token_lists([shared])
    (expected,) = ranker().token_lists([to_rank(vectors[which], by)])
    assert_equal(found, expected)


@WAYS
@pytest.mark.parametrize("max_directions", [1, 2, 256])
def test_scored_together_is_scored_alone(
    monkeypatch: pytest.MonkeyPatch, remembers: bool, max_directions: int
) -> None:
    """Of several kinds, with directions in common, one kind without any, in parts of any size."""
    together = ranker(remembers=remembers)
    for ranking in (together._rank_outputs, together._rank_inputs):
        monkeypatch.setitem(vars(ranking), "max_directions", max_directions)
    vectors, scales = directions(5), [1.0, -2.0, 0.5, 3.0, 0.0]
    several = [
        to_rank(vectors, scales),
        to_rank(vectors[:0], [], is_output=False),
        to_rank(vectors[1:], scales[1:], is_output=False),
        to_rank(vectors[:2], scales[:2], 3),
    ]
    found = list(together.token_lists(several))
    assert len(found) == len(several)
    assert found[1].top_ids.shape[0] == 0
    for one, alone in zip(found, several, strict=True):
        if len(alone.vectors):
            (expected,) = ranker().token_lists([alone])
            assert_equal(one, expected)


def test_writes_and_reads_and_list_lengths_are_kept_apart() -> None:
    vectors, ones, remembering = directions(2), [1.0, 1.0], ranker()
    list(remembering.token_lists([to_rank(vectors, ones, 3)]))
    gained = to_rank(vectors * DECODER.final_norm.gain, ones, 3, is_output=False)
    (again,), (fresh,) = remembering.token_lists([gained]), ranker().token_lists([gained])
    assert_equal(again, fresh)
    (longer,) = remembering.token_lists([to_rank(vectors, ones, 5)])
    assert longer.top_ids.shape == (2, 5)


def test_what_is_remembered_is_not_ranked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, remembering = directions(4), ranker(max_remembered=3)
    asked = to_rank(vectors[1:], [1.0] * 3)
    (first,) = remembering.token_lists([asked])
    monkeypatch.setattr(type(remembering._rank_outputs), "rank", None)
    (again,) = remembering.token_lists([asked])
    assert_equal(first, again)


def test_the_least_recently_used_is_forgotten() -> None:
    vectors, remembering = directions(4), ranker(max_remembered=2)
    for row in (0, 1, 0, 2):
        list(remembering.token_lists([to_rank(vectors[[row]], [1.0])]))
    kept = set(remembering._remembered)
    assert len(kept) == 2
    list(remembering.token_lists([to_rank(vectors[[0, 2]], [1.0, 1.0])]))
    assert set(remembering._remembered) == kept


@WAYS
def test_excluded_tokens_are_in_no_list(remembers: bool) -> None:
    excluded = (0, 7, 8)
    asked = [
        to_rank(directions(3), [1.0, -1.0, 2.0], VOCABULARY_SIZE, is_output=one) for one in (True, False)
    ]
    for found in ranker(remembers=remembers, excluded=excluded).token_lists(asked):
        for ids in (*found.top_ids, *found.bottom_ids):
            assert sorted(ids.tolist()) == [one for one in range(VOCABULARY_SIZE) if one not in excluded]


def test_a_negative_scale_swaps_the_ends() -> None:
    (up,), (down,) = (ranker().token_lists([to_rank(directions(1), [by], 4)]) for by in (2.0, -2.0))
    np.testing.assert_array_equal(up.top_ids, down.bottom_ids)
    np.testing.assert_array_equal(up.bottom_ids, down.top_ids)
    np.testing.assert_allclose(up.top_scalars, -down.bottom_scalars)
    assert (np.diff(down.top_scalars) <= 0).all()
    assert max(down.top_normalized[0, 0], -down.bottom_normalized[0, 0]) == 1.0


def test_a_scale_of_zero_divides_by_nothing() -> None:
    ids = np.zeros((1, 2), np.int32)
    found = scaled(RankedTokens(np.array([[3.0, 1.0]]), ids, np.array([[-2.0, -1.0]]), ids), np.zeros(1))
    assert not found.top_normalized.any()
    assert not found.bottom_scalars.any()

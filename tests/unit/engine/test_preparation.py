"""What is prepared while nobody calls changes no answer, and is found by the calls that come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tdb_server.domain.requests import N_SCORED_TOKENS
from tdb_server.engine.preparation import preparation
from tdb_server.engine.rank_tokens import DirectionsToRank, TokenRanker
from tdb_server.engine.ranking_trial import MANY_TOKENS, RANKINGS
from tdb_server.model.decoder import Decoder
from tdb_server.model.precomputed import precompute
from tdb_server.model.weights import load_decoder

from tests.random_models import write_random_model

VOCABULARY_SIZE = MANY_TOKENS


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp(request.param)
    path = write_random_model(folder, request.param, vocab_size=VOCABULARY_SIZE)
    return load_decoder(path, "cpu", torch.float32)


def neurons_to_rank(decoder: Decoder) -> list[DirectionsToRank]:
    """Writes, and where there is no gate reads, of some neurons in an order of their own."""
    which = torch.tensor([5, 0, 3])
    mlp, scales = decoder.blocks[1].mlp, torch.tensor([1.0, -2.0, 0.5])
    vectors = [mlp.unit_writes(which)]
    if not decoder.config.gated:
        vectors.append(mlp.norm.centered(mlp.read_weights(which) * mlp.norm.gain))
    return [
        DirectionsToRank(one, np.arange(3), scales, N_SCORED_TOKENS, is_output=index == 0)
        for index, one in enumerate(vectors)
    ]


def test_prepared_lists_are_the_lists(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TokenRanker(decoder)
    fresh = list(other.token_lists(neurons_to_rank(decoder)))
    # Which way is faster may come out otherwise the next time, and each way rounds as it does.
    ranker = TokenRanker(decoder, ranking=other.kernel.chosen)
    n_steps = sum(1 for _ in preparation(decoder, precompute(decoder), ranker))
    assert n_steps > 0
    for ranking in RANKINGS.values():
        monkeypatch.setattr(ranking, "rank", None)  # none is ranked
    for prepared, expected in zip(ranker.token_lists(neurons_to_rank(decoder)), fresh, strict=True):
        np.testing.assert_array_equal(prepared.top_ids, expected.top_ids)
        np.testing.assert_array_equal(prepared.bottom_scalars, expected.bottom_scalars)


def test_nothing_is_prepared_that_would_crowd_out_the_rest(decoder: Decoder) -> None:
    n_neurons = decoder.config.n_layers * decoder.config.n_neurons
    assert not list(preparation(decoder, precompute(decoder), TokenRanker(decoder, max_remembered=n_neurons)))


def test_few_tokens_are_ranked_fast_enough(tmp_path: Path) -> None:
    path = write_random_model(tmp_path, "gpt2", vocab_size=1000)
    small = load_decoder(path, "cpu", torch.float32)
    assert not list(preparation(small, precompute(small), TokenRanker(small)))

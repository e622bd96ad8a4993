"""What is prepared while nobody calls changes no answer, and is found by the calls that come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tdb_server.domain.requests import N_SCORED_TOKENS
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder
from tdb_server.scalars import neurons
from tdb_server.scalars.preparation import preparation
from tdb_server.scalars.ranking_trial import MANY_TOKENS, RANKINGS
from tdb_server.scalars.token_scores import Scoring, TokenScorer

from tests.random_models import write_random_model

VOCABULARY_SIZE = MANY_TOKENS


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp(request.param)
    path = write_random_model(folder, request.param, vocab_size=VOCABULARY_SIZE)
    return load_decoder(path, "cpu", torch.float32)


def neuron_scorings(decoder: Decoder) -> list[Scoring]:
    """Writes, and where there is no gate reads, of some neurons in an order of their own."""
    which = torch.tensor([5, 0, 3])
    vectors = [neurons.unit_writes(decoder, 1, which)]
    if not decoder.config.gated:
        vectors.append(neurons.plain_reads(decoder, 1, which))
    scales = torch.tensor([1.0, -2.0, 0.5])
    return [Scoring(one, scales, N_SCORED_TOKENS, is_output=index == 0) for index, one in enumerate(vectors)]


def test_prepared_lists_are_the_lists(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = list(TokenScorer(decoder).score(neuron_scorings(decoder)))
    scorer = TokenScorer(decoder)
    n_steps = sum(1 for _ in preparation(decoder, scorer))
    assert n_steps > 0
    for ranking in RANKINGS.values():
        monkeypatch.setattr(ranking, "rank", None)  # none is ranked
    for prepared, expected in zip(scorer.score(neuron_scorings(decoder)), fresh, strict=True):
        np.testing.assert_array_equal(prepared.top_ids, expected.top_ids)
        np.testing.assert_array_equal(prepared.bottom_scalars, expected.bottom_scalars)


def test_nothing_is_prepared_that_would_crowd_out_the_rest(decoder: Decoder) -> None:
    n_neurons = decoder.config.n_layers * decoder.config.n_neurons
    assert not list(preparation(decoder, TokenScorer(decoder, max_remembered=n_neurons)))

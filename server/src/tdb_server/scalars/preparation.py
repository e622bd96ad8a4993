"""What later calls are likely to need, computed while nobody calls: the token lists of neurons.

A neuron writes along one direction whatever the prompt, and without a gate it reads along one, too. Debug
requests ask which tokens these directions upvote. A small model has some ten thousand of them, ranked within
seconds; of a large one nothing is prepared, since most of it would never be asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from tdb_server.domain.requests import N_SCORED_TOKENS
from tdb_server.model.decoder import Decoder
from tdb_server.scalars import neurons
from tdb_server.scalars.token_scores import Scoring, TokenScorer

_NEURONS_PER_STEP = 64
"""A call that comes meanwhile waits for the end of a step."""


def preparation(decoder: Decoder, scorer: TokenScorer) -> Iterator[None]:
    """Prepares a few neurons' lists, step by step, each of some ten milliseconds.

    What was prepared stays. So the garbage collector is told to leave it alone: to look through a hundred
    thousand objects again and again would hold up a call in twenty for a tenth of a second.

    Where ranking is fast, on a GPU or of few tokens, to remember gains nothing.
    """
    config = decoder.config
    kinds = [(neurons.unit_writes, True)] + ([] if config.gated else [(neurons.plain_reads, False)])
    if not scorer.is_slow or 2 * len(kinds) * config.n_layers * config.n_neurons > scorer.max_remembered:
        return
    for layer_index in range(config.n_layers):
        for which in torch.split(torch.arange(config.n_neurons), _NEURONS_PER_STEP):
            for directions, is_output in kinds:
                vectors = directions(decoder, layer_index, which)
                scorer.prepare(Scoring(vectors, vectors.new_ones(len(which)), N_SCORED_TOKENS, is_output))
                yield
    gc.freeze()

"""What later calls are likely to need, computed while nobody calls: the token lists of neurons.

A neuron writes along one direction whatever the prompt, and without a gate it reads along one, too. Debug
requests ask which tokens these directions upvote. A small model has some ten thousand of them, ranked within
seconds; of a large one nothing is prepared, since most of it would never be asked for.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import torch

from tdb_server.domain.requests import N_SCORED_TOKENS
from tdb_server.engine.rank_tokens import DirectionsToRank, TokenRanker
from tdb_server.model.decoder import Decoder
from tdb_server.model.node_maps import InLayers, fixed_neuron_reads, neuron_writes
from tdb_server.model.precomputed import Precomputed

_NEURONS_PER_STEP = 64
"""A call that comes meanwhile waits for the end of a step."""


def preparation(decoder: Decoder, precomputed: Precomputed, ranker: TokenRanker) -> Iterator[None]:
    """Prepares a few neurons' lists, step by step, each of some ten milliseconds.

    What was prepared stays. So the garbage collector is told to leave it alone: to look through a hundred
    thousand objects again and again would hold up a call in twenty for a tenth of a second.

    Where ranking is fast, on a GPU or of few tokens, to remember gains nothing.
    """
    config, reads_alike = decoder.config, decoder.neurons_read_alike
    n_kinds = 2 if reads_alike else 1
    if not ranker.is_slow or 2 * n_kinds * config.n_layers * config.n_neurons > ranker.max_remembered:
        return
    for layer in range(config.n_layers):
        for neurons in torch.split(torch.arange(config.n_neurons), _NEURONS_PER_STEP):
            where = InLayers(torch.full_like(neurons, layer), [(layer, slice(None))])
            kinds = [(neuron_writes(decoder, where, neurons), True)]
            if reads_alike:
                kinds.append((fixed_neuron_reads(decoder, precomputed, where, neurons), False))
            for vectors, is_output in kinds:
                which, ones = np.arange(len(neurons)), vectors.new_ones(len(neurons))
                ranker.prepare(DirectionsToRank(vectors, which, ones, N_SCORED_TOKENS, is_output))
                yield
    gc.freeze()

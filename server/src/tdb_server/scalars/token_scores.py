"""Vocabulary tokens scored along directions: what a node's write upvotes, and what upvotes the node.

Scoring reads the whole vocabulary matrix, which for a short prompt costs more than the model itself. Many
nodes share a direction up to scale (all uses of one neuron write along one row of its output weights), in
one call and in the next. So each distinct direction is ranked once, its best tokens are remembered under
the direction's own bytes, and a node's list is its direction's, scaled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray, TopTokens
from tdb_server.model.decoder import Decoder
from tdb_server.scalars.neurons import unit_writes
from tdb_server.scalars.ranking_trial import MANY_TOKENS, N_DIRECTIONS, RANKINGS, choose_ranking
from tdb_server.scalars.token_ranking import RankedTokens, Ranking, rank_scores


@dataclass(frozen=True)
class Ranked:
    """Both ends of rankings of the vocabulary, best first: arrays [m, n_tokens]."""

    high: FloatArray
    high_ids: IntArray
    low: FloatArray
    low_ids: IntArray


RankedRow = tuple[Ranked, int]
"""One ranking: those it was made with, and which of them it is."""


@dataclass(frozen=True)
class Scoring:
    """Some directions to be scored.

    Attributes:
        vectors: the directions [m, d].
        scales: what each is multiplied with [m].
        n_tokens: tokens wanted at both ends of each ranking.
        is_output: output tokens are scored that writes upvote, the mean over the vocabulary subtracted;
            else input tokens, whose embeddings upvote what is read.
    """

    vectors: Tensor
    scales: Tensor
    n_tokens: int
    is_output: bool


MAX_REMEMBERED = 2**18
"""Rankings of ten tokens at both ends take about 100 MB."""
Key = tuple[bool, int, bytes]
"""What a ranking is remembered under: output or input tokens, how many of them, and the direction's bytes."""


class TokenScorer:
    """Ranks a model's vocabulary along directions, and remembers what it ranked."""

    def __init__(
        self,
        decoder: Decoder,
        excluded: Sequence[int] = (),
        max_remembered: int = MAX_REMEMBERED,
        ranking: str | None = None,
    ) -> None:
        """Starts with nothing remembered.

        Args:
            excluded: token ids that are never listed.
            max_remembered: directions whose rankings are kept, least recently used dropped first.
            ranking: how vocabularies are ranked, one of `RANKINGS`; None for the fastest way on this machine.

        Raises:
            ModelError: that ranking cannot be had here.
        """
        self._decoder = decoder
        weights = decoder.weights
        self._gain = weights.final_norm.gain
        self._mean = weights.unembedding.mean(dim=0)
        self._excluded = torch.tensor(list(excluded), device=decoder.device) if excluded else None
        some_neurons = torch.arange(min(N_DIRECTIONS, decoder.config.n_neurons), device=decoder.device)
        writes = unit_writes(decoder, decoder.config.n_layers // 2, some_neurons) * self._gain
        self._rank_outputs, self.kernel = choose_ranking(weights.unembedding, self._excluded, writes, ranking)
        is_tied = weights.unembedding is weights.token_embedding
        self._rank_inputs = (
            self._rank_outputs
            if is_tied
            else RANKINGS[self.kernel.chosen](weights.token_embedding, self._excluded)
        )
        self._remembered: OrderedDict[Key, RankedRow] = OrderedDict()
        self.max_remembered = max_remembered

    @property
    def is_slow(self) -> bool:
        """Whether ranking takes so long that it is worth doing ahead of calls: many tokens, on a CPU."""
        vocabulary = self._decoder.weights.unembedding
        return vocabulary.device.type == "cpu" and len(vocabulary) >= MANY_TOKENS

    def score(self, scorings: Sequence[Scoring]) -> Iterator[TopTokens]:
        """The token lists of every direction of each scoring, one scoring after the other.

        What is not remembered is ranked together, a part at a time: the first lists are ready, and on their
        way to the caller, while the last directions still wait.
        """
        directions = [self._along(one) for one in scorings]
        keys = [_keys(one, along) for one, along in zip(scorings, directions, strict=True)]
        found = {key: self._remembered[key] for own in keys for key in own if key in self._remembered}
        self._remember(found)
        parts = self._rank_others(found, keys, directions)
        for scoring, along, own in zip(scorings, directions, keys, strict=True):
            while not found.keys() >= set(own):
                part = next(parts)
                self._remember(part)
                found |= part
            ranked = _stacked([found[key] for key in own])
            if scoring.is_output:
                mean = _floats(along @ self._mean)[:, None]
                ranked = replace(ranked, high=ranked.high - mean, low=ranked.low - mean)
            yield scaled(ranked, scoring.scales)

    def prepare(self, scoring: Scoring) -> None:
        """Ranks along a few directions that later calls may ask for."""
        along = self._along(scoring)
        for part in self._rank_others(self._remembered, [_keys(scoring, along)], [along]):
            self._remember(part)

    def ranked(self, scores: Tensor, n_tokens: int) -> Ranked:
        """Both ends of rows of scores [m, V]."""
        return _arrays(rank_scores(scores, n_tokens, self._excluded))

    def _along(self, scoring: Scoring) -> Tensor:
        return scoring.vectors * self._gain if scoring.is_output else scoring.vectors

    def _rank_others(
        self, found: Mapping[Key, RankedRow], keys: Sequence[Sequence[Key]], directions: Sequence[Tensor]
    ) -> Iterator[dict[Key, RankedRow]]:
        """The rankings under every key that is not found, in parts, in the order of the keys."""
        missing: dict[tuple[Ranking, int], dict[Key, Tensor]] = {}
        for own, along in zip(keys, directions, strict=True):
            for key, direction in zip(own, along, strict=True):
                if key not in found:
                    ranking = self._rank_outputs if key[0] else self._rank_inputs
                    missing.setdefault((ranking, key[1]), {})[key] = direction
        for (ranking, n_tokens), wanted in missing.items():
            waiting = iter(wanted)
            for part in torch.split(torch.stack(list(wanted.values())), ranking.max_directions):
                ranked = _arrays(ranking.rank(part, n_tokens))
                yield {next(waiting): (ranked, row) for row in range(len(part))}

    def _remember(self, found: Mapping[Key, RankedRow]) -> None:
        for key, row in found.items():
            self._remembered[key] = row
            self._remembered.move_to_end(key)
        while len(self._remembered) > self.max_remembered:
            self._remembered.popitem(last=False)


def _keys(scoring: Scoring, directions: Tensor) -> list[Key]:
    return [
        (scoring.is_output, scoring.n_tokens, sha256(row.tobytes()).digest()) for row in _floats(directions)
    ]


def _arrays(ranked: RankedTokens) -> Ranked:
    return Ranked(_floats(ranked.high), _ids(ranked.high_ids), _floats(ranked.low), _ids(ranked.low_ids))


def _floats(x: Tensor) -> FloatArray:
    array: FloatArray = (x.float() if x.dtype.itemsize < 4 else x).cpu().numpy()
    return array


def _ids(x: Tensor) -> IntArray:
    array: IntArray = x.to(torch.int32).cpu().numpy()
    return array


def _stacked(rows: Sequence[RankedRow]) -> Ranked:
    if not rows:
        ids, floats = np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
        return Ranked(floats, ids, floats, ids)
    return Ranked(
        np.stack([ranked.high[row] for ranked, row in rows]),
        np.stack([ranked.high_ids[row] for ranked, row in rows]),
        np.stack([ranked.low[row] for ranked, row in rows]),
        np.stack([ranked.low_ids[row] for ranked, row in rows]),
    )


def scaled(ranked: Ranked, scales: Tensor) -> TopTokens:
    """Each node's token lists: those of its direction times its scale [n]; a negative one swaps the ends."""
    by = _floats(scales)[:, None]
    is_flipped = by < 0
    top = np.where(is_flipped, ranked.low, ranked.high) * by
    bottom = np.where(is_flipped, ranked.high, ranked.low) * by
    leading = np.maximum(np.abs(top[:, :1]), np.abs(bottom[:, :1]))
    leading[leading == 0] = 1
    return TopTokens(
        np.where(is_flipped, ranked.low_ids, ranked.high_ids),
        top,
        top / leading,
        np.where(is_flipped, ranked.high_ids, ranked.low_ids),
        bottom,
        bottom / leading,
    )


def no_tokens() -> TopTokens:
    """Token lists of no node."""
    ids, floats = np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)
    return TopTokens(ids, floats, floats, ids, floats, floats)

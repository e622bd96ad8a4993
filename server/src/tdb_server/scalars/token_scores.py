"""Vocabulary tokens scored along directions: what a node's write upvotes, and what upvotes the node.

Scoring reads the whole vocabulary matrix, which for a short prompt costs more than the model itself. Many
nodes share a direction up to scale (all uses of one neuron write along one row of its output weights), in
one call and in the next. So each distinct direction is ranked once, its best tokens are remembered under
the direction's own bytes, and a node's list is its direction's, scaled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray, TopTokens
from tdb_server.model.decoder import Decoder
from tdb_server.scalars.token_ranking import RankedTokens, rank_scores, rank_vocabulary
from tdb_server.scalars.vocabulary_search import VocabularySearch, is_search_worthwhile

Ranking = Callable[[Tensor, int], RankedTokens]
"""From directions [m, d] and a number of tokens to as many tokens at both ends of each ranking."""


@dataclass(frozen=True)
class Ranked:
    """Both ends of rankings of the vocabulary, best first: arrays [m, n_tokens], or [n_tokens] for one."""

    high: FloatArray
    high_ids: IntArray
    low: FloatArray
    low_ids: IntArray

    def __getitem__(self, row: int) -> Ranked:
        return Ranked(self.high[row], self.high_ids[row], self.low[row], self.low_ids[row])


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


Key = tuple[bool, int, bytes]
"""What a ranking is remembered under: output or input tokens, how many of them, and the direction's bytes."""


class TokenScorer:
    """Ranks a model's vocabulary along directions, and remembers what it ranked."""

    def __init__(self, decoder: Decoder, excluded: Sequence[int] = (), max_remembered: int = 65_536) -> None:
        """Starts with nothing remembered.

        Args:
            excluded: token ids that are never listed.
            max_remembered: directions whose rankings are kept, least recently used dropped first.
        """
        weights = decoder.weights
        self._gain = weights.final_norm.gain
        self._mean = weights.unembedding.mean(dim=0)
        self._excluded = torch.tensor(list(excluded), device=decoder.device) if excluded else None
        self._rank_inputs = self._ranking(weights.token_embedding)
        is_tied = weights.unembedding is weights.token_embedding
        self._rank_outputs = self._rank_inputs if is_tied else self._ranking(weights.unembedding)
        self._remembered: OrderedDict[Key, Ranked] = OrderedDict()
        self._max_remembered = max_remembered

    def _ranking(self, vocabulary: Tensor) -> Ranking:
        """How a vocabulary [V, d] is ranked: the same either way, the search being the faster."""
        if is_search_worthwhile(vocabulary):
            return VocabularySearch(vocabulary, self._excluded).rank
        return partial(rank_vocabulary, vocabulary, excluded=self._excluded)

    def score(self, scorings: Sequence[Scoring]) -> list[TopTokens]:
        """The token lists of every direction of each scoring; what is not remembered is ranked together."""
        directions = [one.vectors * self._gain if one.is_output else one.vectors for one in scorings]
        keys = [_keys(one, along) for one, along in zip(scorings, directions, strict=True)]
        found = self._ranked_by_key(keys, directions)
        lists = []
        for scoring, along, own in zip(scorings, directions, keys, strict=True):
            ranked = _stacked([found[key] for key in own])
            if scoring.is_output:
                mean = _floats(along @ self._mean)[:, None]
                ranked = replace(ranked, high=ranked.high - mean, low=ranked.low - mean)
            lists.append(scaled(ranked, scoring.scales))
        return lists

    def ranked(self, scores: Tensor, n_tokens: int) -> Ranked:
        """Both ends of rows of scores [m, V]."""
        return _arrays(rank_scores(scores, n_tokens, self._excluded))

    def _ranked_by_key(
        self, keys: Sequence[Sequence[Key]], directions: Sequence[Tensor]
    ) -> dict[Key, Ranked]:
        """The ranking under every key, computed for those not remembered."""
        found = {key: self._remembered[key] for own in keys for key in own if key in self._remembered}
        missing: dict[tuple[Ranking, int], dict[Key, Tensor]] = {}
        for own, along in zip(keys, directions, strict=True):
            for key, direction in zip(own, along, strict=True):
                if key not in found:
                    rank = self._rank_outputs if key[0] else self._rank_inputs
                    missing.setdefault((rank, key[1]), {})[key] = direction
        for (rank, n_tokens), wanted in missing.items():
            ranked = _arrays(rank(torch.stack(list(wanted.values())), n_tokens))
            found |= {key: ranked[row] for row, key in enumerate(wanted)}
        self._remember(found)
        return found

    def _remember(self, found: dict[Key, Ranked]) -> None:
        for key, ranked in found.items():
            self._remembered[key] = ranked
            self._remembered.move_to_end(key)
        while len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _keys(scoring: Scoring, directions: Tensor) -> list[Key]:
    return [
        (scoring.is_output, scoring.n_tokens, blake2b(row.tobytes(), digest_size=16).digest())
        for row in _floats(directions)
    ]


def _arrays(ranked: RankedTokens) -> Ranked:
    return Ranked(_floats(ranked.high), _ids(ranked.high_ids), _floats(ranked.low), _ids(ranked.low_ids))


def _floats(x: Tensor) -> FloatArray:
    array: FloatArray = (x.float() if x.dtype.itemsize < 4 else x).cpu().numpy()
    return array


def _ids(x: Tensor) -> IntArray:
    array: IntArray = x.to(torch.int32).cpu().numpy()
    return array


def _stacked(ranked: Sequence[Ranked]) -> Ranked:
    if not ranked:
        ids, floats = np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32)
        return Ranked(floats, ids, floats, ids)
    return Ranked(
        np.stack([one.high for one in ranked]),
        np.stack([one.high_ids for one in ranked]),
        np.stack([one.low for one in ranked]),
        np.stack([one.low_ids for one in ranked]),
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

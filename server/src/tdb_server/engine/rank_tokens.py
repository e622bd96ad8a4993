"""Vocabulary tokens ranked along directions; what was ranked is remembered.

Ranking reads the whole vocabulary matrix, which for a short prompt costs more than the model itself. On a
CPU, each distinct direction is ranked once, and its best tokens are remembered under the direction's own
bytes: all uses of one neuron write along one row of its output weights, in one call and in the next. On a GPU
ranking is faster than to wait for what is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.results import TopTokens
from tdb_server.engine.ranking_trial import MANY_TOKENS, N_DIRECTIONS, RANKINGS, Ranking, choose_ranking
from tdb_server.engine.token_ranking import RankedTokens, rank_scores
from tdb_server.engine.transfers import Array, download
from tdb_server.model.decoder import Decoder
from tdb_server.model.precision import wide, wide_sum

MAX_REMEMBERED = 2**18
"""Rankings of ten tokens at both ends take about 100 MB."""
Key = tuple[bool, int, bytes]
"""What a ranking is remembered under: output or input tokens, how many of them, and the direction's bytes."""


RankedRow = tuple[RankedTokens[Array], int]
"""Rankings that were made together, and this one's row among them."""


@dataclass(frozen=True)
class DirectionsToRank:
    """Some directions to be ranked along.

    Attributes:
        vectors: distinct directions [u, d].
        which: the vector of each node [m], on the host.
        scales: what each node's vector is multiplied with [m].
        n_tokens: tokens wanted at both ends of each ranking.
        is_output: output tokens are scored that writes upvote, the mean over the vocabulary subtracted;
            else input tokens, whose embeddings upvote what is read.
    """

    vectors: Tensor
    which: Array
    scales: Tensor
    n_tokens: int
    is_output: bool


class TokenRanker:
    """Ranks a model's vocabulary along directions."""

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
        vocabulary, embedding = decoder.unembedding, decoder.token_embedding
        self._decoder = decoder
        self._mean = wide_sum(vocabulary) / len(vocabulary)
        self._excluded = torch.tensor(list(excluded), device=decoder.device) if excluded else None
        middle = decoder.blocks[len(decoder.blocks) // 2].mlp
        some = torch.arange(min(N_DIRECTIONS, decoder.config.n_neurons), device=decoder.device)
        writes = wide(decoder.along_logits(middle.unit_writes(some)))
        self._rank_outputs, self.kernel = choose_ranking(vocabulary, self._excluded, writes, ranking)
        self._rank_inputs = (
            self._rank_outputs
            if vocabulary is embedding
            else RANKINGS[self.kernel.chosen](embedding, self._excluded)
        )
        self._remembered: OrderedDict[Key, RankedRow] = OrderedDict()
        self.max_remembered = max_remembered
        self.remembers = decoder.device.type == "cpu"
        self.is_slow = self.remembers and len(vocabulary) >= MANY_TOKENS

    def token_lists(
        self, to_rank: Sequence[DirectionsToRank], check_cancelled: Callable[[], None] = lambda: None
    ) -> Iterator[TopTokens]:
        """The token lists of the nodes of all these, those of one after those of the other.

        Raises:
            Cancelled: as `check_cancelled`, which a CPU asks between parts.
        """
        if not self.remembers:
            return self._rank_at_once(to_rank)
        return self._rank_remembering(to_rank, check_cancelled)

    def prepare(self, wanted: DirectionsToRank) -> None:
        """Ranks along a few directions that later calls may ask for."""
        along = self._along(wanted)
        for part in self._rank_missing(self._remembered, [_keys(wanted, along)], [along]):
            self._remember(part)

    def rank_scores(self, scores: Tensor, n_tokens: int) -> RankedTokens[Array]:
        """Both ends of rows of scores [m, V]."""
        return RankedTokens(*download(rank_scores(scores, n_tokens, self._excluded)))

    def _along(self, wanted: DirectionsToRank) -> Tensor:
        along = self._decoder.along_logits if wanted.is_output else self._decoder.entering
        return along(wanted.vectors)

    def _ranking(self, *, is_output: bool) -> Ranking:
        return self._rank_outputs if is_output else self._rank_inputs

    def _rank_at_once(self, to_rank: Sequence[DirectionsToRank]) -> Iterator[TopTokens]:
        """Ranks along all directions in as few products as there is room for; one copy to the host."""
        along = [self._along(one) for one in to_rank]
        together: dict[tuple[Ranking, int], list[int]] = {}
        for index, one in enumerate(to_rank):
            together.setdefault((self._ranking(is_output=one.is_output), one.n_tokens), []).append(index)
        parts = [
            [
                ranking.rank(part, n_tokens)
                for part in torch.split(torch.cat([along[at] for at in indices]), ranking.max_directions)
            ]
            for (ranking, n_tokens), indices in together.items()
        ]
        means = [one @ self._mean for one, wanted in zip(along, to_rank, strict=True) if wanted.is_output]
        tensors = [tensor for of_ranking in parts for part in of_ranking for tensor in part]
        arrays = iter(download([*tensors, *means, *(one.scales for one in to_rank)]))
        ranked: dict[int, RankedTokens[Array]] = {}
        for indices, of_ranking in zip(together.values(), parts, strict=True):
            found = [[next(arrays) for _ in part] for part in of_ranking]
            stops = np.cumsum([len(along[index]) for index in indices])[:-1]
            split = [np.split(np.concatenate(one), stops) for one in zip(*found, strict=True)]
            ranked |= {index: RankedTokens(*one) for index, *one in zip(indices, *split, strict=True)}
        host_means = [next(arrays) if one.is_output else None for one in to_rank]
        for index, one in enumerate(to_rank):
            yield _lists(ranked[index], one, host_means[index], next(arrays))

    def _rank_remembering(
        self, to_rank: Sequence[DirectionsToRank], check_cancelled: Callable[[], None]
    ) -> Iterator[TopTokens]:
        """What is not remembered is ranked together, a part at a time.

        The first lists are ready, and on their way to the caller, while the last directions still wait.
        """
        check_cancelled()
        directions = [self._along(one) for one in to_rank]
        check_cancelled()
        keys = [_keys(one, along) for one, along in zip(to_rank, directions, strict=True)]
        rankings = {key: self._remembered[key] for some in keys for key in some if key in self._remembered}
        self._remember(rankings)
        parts = self._rank_missing(rankings, keys, directions)
        for wanted, along, its_keys in zip(to_rank, directions, keys, strict=True):
            check_cancelled()
            while not rankings.keys() >= set(its_keys):
                check_cancelled()
                part = next(parts)
                self._remember(part)
                rankings |= part
            scales, mean = download([wanted.scales, along @ self._mean])
            if its_keys:
                rows = [rankings[key] for key in its_keys]
                joined = (np.stack([ranked[end][row] for ranked, row in rows]) for end in range(4))
                yield _lists(RankedTokens(*joined), wanted, mean if wanted.is_output else None, scales)
            else:
                yield no_tokens()

    def _rank_missing(
        self, known: Mapping[Key, RankedRow], keys: Sequence[Sequence[Key]], directions: Sequence[Tensor]
    ) -> Iterator[dict[Key, RankedRow]]:
        """The rankings under every key that is not known, in parts, in the order of the keys."""
        missing: dict[tuple[Ranking, int], dict[Key, Tensor]] = {}
        for own, along in zip(keys, directions, strict=True):
            for key, direction in zip(own, along, strict=True):
                if key not in known:
                    missing.setdefault((self._ranking(is_output=key[0]), key[1]), {})[key] = direction
        for (ranking, n_tokens), missing_directions in missing.items():
            waiting = iter(missing_directions)
            for part in torch.split(torch.stack(list(missing_directions.values())), ranking.max_directions):
                ranked = RankedTokens(*download(ranking.rank(part, n_tokens)))
                yield {next(waiting): (ranked, row) for row in range(len(part))}

    def _remember(self, rankings: Mapping[Key, RankedRow]) -> None:
        for key, row in rankings.items():
            self._remembered[key] = row
            self._remembered.move_to_end(key)
        while len(self._remembered) > self.max_remembered:
            self._remembered.popitem(last=False)


def _keys(wanted: DirectionsToRank, directions: Tensor) -> list[Key]:
    (rows,) = download([directions])
    return [(wanted.is_output, wanted.n_tokens, sha256(row.tobytes()).digest()) for row in rows]


def _lists(
    ranked: RankedTokens[Array], wanted: DirectionsToRank, mean: Array | None, scales: Array
) -> TopTokens:
    """Each node's token lists, from the rankings of the distinct directions, less their means."""
    high, high_ids, low, low_ids = (one[wanted.which] for one in ranked)
    less = 0 if mean is None else mean[wanted.which][:, None]
    return scaled(RankedTokens(high - less, high_ids, low - less, low_ids), scales)


def scaled(ranked: RankedTokens[Array], scales: Array) -> TopTokens:
    """Each node's token lists: those of its direction times its scale [n]; a negative one swaps the ends."""
    by = scales[:, None]
    is_flipped = by < 0
    top = np.where(is_flipped, ranked.low, ranked.high) * by
    bottom = np.where(is_flipped, ranked.high, ranked.low) * by
    leading = np.maximum(np.abs(top[:, :1]), np.abs(bottom[:, :1]))
    leading[leading == 0] = 1
    return TopTokens(
        np.where(is_flipped, ranked.low_ids, ranked.high_ids).astype(np.int32),
        top,
        top / leading,
        np.where(is_flipped, ranked.high_ids, ranked.low_ids).astype(np.int32),
        bottom,
        bottom / leading,
    )


def no_tokens() -> TopTokens:
    """Token lists of no node."""
    ids, floats = np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)
    return TopTokens(ids, floats, floats, ids, floats, floats)

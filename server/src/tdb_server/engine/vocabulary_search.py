"""Both ends of rankings of the vocabulary, without scoring every token exactly.

Scores in 8 bits with bounds on their errors (`quantized_scores`) leave out most tokens; only those that may
stand in the ranking are scored exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdb_server.engine.quantized_scores import (
    LARGEST,
    MAX_DIRECTIONS,
    N_BANDS,
    Int8Product,
    Int8Vocabulary,
    QuantizedScores,
    onednn_int8_product,
)
from tdb_server.engine.sampled_products import sampled_products
from tdb_server.engine.token_ranking import ExactRanking, RankedTokens

_MAX_CANDIDATES = 2048
"""Along a direction with more candidates, scoring every token is as fast."""


class VocabularySearch:
    """Ranks a vocabulary [V, d] along a few directions at a time."""

    max_directions = MAX_DIRECTIONS

    def __init__(
        self,
        vocabulary: Tensor,
        excluded: Tensor | None = None,
        product: Int8Product = onednn_int8_product,
    ) -> None:
        """Makes a copy of the vocabulary in 8 bits.

        Args:
            excluded: token ids that are never ranked.
            product: how quantized scores are computed.
        """
        self._vocabulary, self._exact = vocabulary, ExactRanking(vocabulary, excluded)
        is_ranked = torch.ones(len(vocabulary), dtype=torch.bool)
        if excluded is not None:
            is_ranked[excluded] = False
        ids = is_ranked.nonzero()[:, 0]
        self.quantized = Int8Vocabulary(vocabulary[ids], product)
        order = self.quantized.order
        self._ids = ids[order].masked_fill(order < 0, -1)  # [BLOCK, n_blocks]

    def rank(self, directions: Tensor, k: int) -> RankedTokens[Tensor]:
        """The k highest and lowest tokens along directions [m, d], the same as if all were scored."""
        if 4 * k > self.quantized.n_blocks:
            return self._exact.rank(directions, k)
        quantized = self.quantized.scores(directions)
        rows, ids = self._candidates(directions, quantized, k)
        counts = rows.bincount(minlength=len(directions))
        is_found = quantized.bounds.isfinite().all(dim=0) & (counts >= k) & (counts <= _MAX_CANDIDATES)
        if not is_found.all():  # as along zero
            return self._rank_apart(directions, k, is_found)
        scores = sampled_products(directions, self._vocabulary, rows, ids)
        first = counts.cumsum(0) - counts
        columns = torch.arange(len(rows)) - first[rows]  # of each candidate, among those of its row
        row_ids = ids.new_zeros(len(directions), int(counts.amax()))
        row_ids[rows, columns] = ids

        def best(largest: bool) -> tuple[Tensor, Tensor]:
            row_scores = scores.new_full(row_ids.shape, -torch.inf if largest else torch.inf)
            row_scores[rows, columns] = scores
            found = row_scores.topk(k, dim=1, largest=largest)
            return found.values, row_ids.gather(1, found.indices)

        return RankedTokens(*best(largest=True), *best(largest=False))

    def _rank_apart(self, directions: Tensor, k: int, is_found: Tensor) -> RankedTokens[Tensor]:
        """Ranks by scoring every token where too many are candidates, and by searching for the others."""
        ranked = self._exact.rank(directions[~is_found], k)
        if not is_found.any():
            return ranked
        parts = zip(ranked, self.rank(directions[is_found], k), strict=True)
        places = torch.cat(((~is_found).nonzero()[:, 0], is_found.nonzero()[:, 0])).argsort()
        return RankedTokens(*(torch.cat(part)[places] for part in parts))

    def _candidates(self, directions: Tensor, quantized: QuantizedScores, k: int) -> tuple[Tensor, Tensor]:
        """All tokens that may be among the k best at either end.

        Others are out: even with the largest possible error they do not reach k tokens whose scores are
        known, one from each of the k best blocks.

        Returns:
            The candidates' directions and their token ids, ordered by direction: two tensors [n].
        """
        known_high, known_low = self._known_scores(directions, quantized, k)  # [m]
        at_least = _in_8_bits((known_high / quantized.steps - quantized.bounds).ceil())  # [N_BANDS, m]
        at_most = _in_8_bits((known_low / quantized.steps + quantized.bounds).floor())
        band = self.quantized.n_blocks // N_BANDS
        is_high = quantized.highest >= at_least.repeat_interleave(band, dim=0)
        is_low = quantized.lowest <= at_most.repeat_interleave(band, dim=0)
        blocks, rows = (is_high | is_low).nonzero().unbind(1)
        bands = blocks // band
        members = quantized.scores[:, blocks, rows]  # [BLOCK, n]
        is_candidate = (members >= at_least[bands, rows]) | (members <= at_most[bands, rows])
        within, entries = is_candidate.nonzero().unbind(1)
        ids = self._ids[within, blocks[entries]]
        is_token = ids >= 0
        rows, order = rows[entries[is_token]].sort(stable=True)
        return rows, ids[is_token][order]

    def _known_scores(self, directions: Tensor, quantized: QuantizedScores, k: int) -> tuple[Tensor, Tensor]:
        """What k tokens score at least along each direction, and k tokens at most: two [m].

        The mean's score is taken off. The tokens are the best ones of the k blocks with the best ones.
        """
        high = quantized.highest.T.contiguous().topk(k, dim=1, sorted=False).indices
        low = quantized.lowest.T.contiguous().topk(k, dim=1, sorted=False, largest=False).indices
        blocks, rows = torch.cat((high, low), dim=1), torch.arange(len(directions))[:, None]  # [m, 2k]
        members = quantized.scores[:, blocks, rows]  # [BLOCK, m, 2k]
        within = torch.cat((members[..., :k].argmax(dim=0), members[..., k:].argmin(dim=0)), dim=1)
        ids = self._ids[within, blocks]
        where = rows.expand_as(ids).flatten(), ids.clamp(min=0).flatten()
        scores = sampled_products(directions, self._vocabulary, *where).view(ids.shape)
        scores -= directions @ self.quantized.mean[:, None]
        return (
            scores[:, :k].masked_fill(ids[:, :k] < 0, -torch.inf).amin(dim=1),
            scores[:, k:].masked_fill(ids[:, k:] < 0, torch.inf).amax(dim=1),
        )


def _in_8_bits(steps: Tensor) -> Tensor:
    """Whole numbers as 8-bit integers: those that do not fit, as the nearest that do."""
    return steps.clamp(-LARGEST - 1, LARGEST).to(torch.int8)

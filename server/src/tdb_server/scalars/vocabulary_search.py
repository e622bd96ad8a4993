"""Both ends of rankings of the vocabulary, without scoring every token exactly.

Rough scores with bounds on their errors (`rough_scores`) leave out most tokens; only those that may stand in
the ranking are scored exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdb_server.scalars.rough_scores import BLOCK, MAX_DIRECTIONS, RoughScores, RoughVocabulary
from tdb_server.scalars.sampled_products import sampled_products
from tdb_server.scalars.token_ranking import RankedTokens, rank_vocabulary

_MAX_CANDIDATES = 2048
"""Along a direction with more candidates, scoring every token is as fast."""


def is_search_worthwhile(vocabulary: Tensor) -> bool:
    """Whether the processor is good at products of 8-bit integers, and there are enough tokens.

    Processors without instructions for them (VNNI) are not only slow: their sums overflow.
    """
    return (
        vocabulary.device.type == "cpu"
        and vocabulary.dtype == torch.float32
        and len(vocabulary) >= 8192
        and torch.cpu._is_vnni_supported()  # noqa: SLF001, there is no public way to ask
    )


class VocabularySearch:
    """Ranks a vocabulary [V, d] along a few directions at a time."""

    max_directions = MAX_DIRECTIONS

    def __init__(self, vocabulary: Tensor, excluded: Tensor | None = None) -> None:
        """Makes a rough copy of the vocabulary.

        Args:
            excluded: token ids that are never ranked.
        """
        self._vocabulary, self._excluded = vocabulary, excluded
        is_ranked = torch.ones(len(vocabulary), dtype=torch.bool)
        if excluded is not None:
            is_ranked[excluded] = False
        self._ids = is_ranked.nonzero()[:, 0]
        self.rough = RoughVocabulary(vocabulary[self._ids])

    def rank(self, directions: Tensor, k: int) -> RankedTokens:
        """The k highest and lowest tokens along directions [m, d], the same as if all were scored."""
        if 4 * k > self.rough.n_blocks:
            return rank_vocabulary(self._vocabulary, directions, k, self._excluded)
        rows, ids = self._candidates(directions, k)
        counts = rows.bincount(minlength=len(directions))
        if counts.amin() < k or counts.amax() > _MAX_CANDIDATES:  # as along zero, or what is not a number
            return rank_vocabulary(self._vocabulary, directions, k, self._excluded)
        scores = sampled_products(directions, self._vocabulary, rows, ids)
        first = counts.cumsum(0) - counts
        spots = torch.arange(len(rows)) - first[rows]  # each candidate's place in its row
        row_ids = ids.new_zeros(len(directions), int(counts.amax()))
        row_ids[rows, spots] = ids

        def best(largest: bool) -> tuple[Tensor, Tensor]:
            row_scores = scores.new_full(row_ids.shape, -torch.inf if largest else torch.inf)
            row_scores[rows, spots] = scores
            found = row_scores.topk(k, dim=1, largest=largest)
            return found.values, row_ids.gather(1, found.indices)

        return RankedTokens(*best(largest=True), *best(largest=False))

    def _candidates(self, directions: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """All tokens that may be among the k best at either end.

        Others are out: even with the largest possible error they do not reach k tokens whose scores are
        known, one from each of the k best blocks.

        Returns:
            The candidates' directions and their token ids, ordered by direction: two tensors [n].
        """
        rough = self.rough.scores(directions)
        some_high = _best_of_best_blocks(rough, k, largest=True)
        some_low = _best_of_best_blocks(rough, k, largest=False)
        known = self._scores_of_columns(directions, torch.cat((some_high, some_low), dim=1))
        known = (known - directions @ self.rough.mean[:, None]) / rough.steps  # [m, 2k]
        at_least = known[:, :k].amin(dim=1, keepdim=True) - rough.bounds  # [m, 1]
        at_most = known[:, k:].amax(dim=1, keepdim=True) + rough.bounds
        rows, blocks = ((rough.highest >= at_least) | (rough.lowest <= at_most)).nonzero().unbind(1)
        members = rough.of_blocks(rows, blocks)  # [n, BLOCK]
        entries, within = ((members >= at_least[rows]) | (members <= at_most[rows])).nonzero().unbind(1)
        columns = blocks[entries] * BLOCK + within
        is_token = columns < len(self._ids)
        return rows[entries[is_token]], self._ids[columns[is_token]]

    def _scores_of_columns(self, directions: Tensor, columns: Tensor) -> Tensor:
        """Exact scores of as many tokens along each direction: columns [m, n] to [m, n]."""
        ids = self._ids[columns.flatten().clamp(max=len(self._ids) - 1)]
        vectors = self._vocabulary.index_select(0, ids).view(*columns.shape, -1)
        return torch.einsum("mnd,md->mn", vectors, directions)


def _best_of_best_blocks(rough: RoughScores, k: int, largest: bool) -> Tensor:
    """The best column of each of the k blocks with the best ones [m, k]; no column twice."""
    best = rough.highest if largest else rough.lowest
    chosen = best.topk(k, dim=1, largest=largest, sorted=False).indices
    rows = torch.arange(len(best)).repeat_interleave(k)
    members = rough.of_blocks(rows, chosen.flatten()).view(*chosen.shape, BLOCK)
    within = members.argmax(dim=2) if largest else members.argmin(dim=2)
    return chosen * BLOCK + within

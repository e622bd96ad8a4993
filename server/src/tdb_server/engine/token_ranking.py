"""Both ends of rankings of the vocabulary, by scoring every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from tdb_server.engine.block_maxima import top_k_per_row
from tdb_server.engine.transfers import A
from tdb_server.model.precision import wide_linear


class RankedTokens(NamedTuple, Generic[A]):
    """The highest and the lowest tokens along m directions, best first: scores and token ids [m, k]."""

    high: A
    high_ids: A
    low: A
    low_ids: A


@dataclass(frozen=True)
class ExactRanking:
    """Ranks a vocabulary [V, d] by scoring every token.

    Attributes:
        excluded: token ids that are never ranked.
        max_directions: ranked together; bounds the scores, which are [max_directions, V].
    """

    vocabulary: Tensor
    excluded: Tensor | None = None
    max_directions: int = 256

    def rank(self, directions: Tensor, k: int) -> RankedTokens[Tensor]:
        """The k highest and lowest tokens along directions [m, d]."""
        return rank_scores(wide_linear(directions, self.vocabulary), k, self.excluded)


def rank_scores(scores: Tensor, k: int, excluded: Tensor | None = None) -> RankedTokens[Tensor]:
    """Both ends of rows of scores [m, V]."""
    k = min(k, scores.shape[1] - (0 if excluded is None else len(excluded)))

    def without(value: float) -> Tensor:
        return scores if excluded is None else scores.index_fill(1, excluded, value)

    return RankedTokens(
        *top_k_per_row(without(-torch.inf), k), *top_k_per_row(without(torch.inf), k, largest=False)
    )

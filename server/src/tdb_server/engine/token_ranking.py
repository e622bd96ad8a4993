"""Both ends of rankings of the vocabulary, by scoring every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.engine.block_maxima import top_k_per_row


@dataclass(frozen=True)
class RankedTokens:
    """The highest and the lowest tokens along m directions, best first: scores and token ids [m, k]."""

    high: Tensor
    high_ids: Tensor
    low: Tensor
    low_ids: Tensor


class Ranking(Protocol):
    """A way to rank a vocabulary along at most `max_directions` directions at a time."""

    @property
    def max_directions(self) -> int:
        """How many directions are ranked together."""
        ...

    def rank(self, directions: Tensor, k: int) -> RankedTokens:
        """The k highest and lowest tokens along directions [m, d]."""
        ...


@dataclass(frozen=True)
class ExactRanking:
    """Ranks a vocabulary [V, d] by scoring every token.

    Attributes:
        excluded: token ids that are never ranked.
        max_directions: bounds the scores, which are [max_directions, V].
    """

    vocabulary: Tensor
    excluded: Tensor | None = None
    max_directions: int = 256

    def rank(self, directions: Tensor, k: int) -> RankedTokens:
        """The k highest and lowest tokens along directions [m, d]."""
        return rank_vocabulary(self.vocabulary, directions, k, self.excluded)


def rank_vocabulary(
    vocabulary: Tensor, directions: Tensor, k: int, excluded: Tensor | None = None
) -> RankedTokens:
    """Both ends of the rankings of a vocabulary [V, d] along directions [m, d]."""
    return rank_scores(F.linear(directions, vocabulary), k, excluded)


def rank_scores(scores: Tensor, k: int, excluded: Tensor | None = None) -> RankedTokens:
    """Both ends of rows of scores [m, V]."""
    k = min(k, scores.shape[1] - (0 if excluded is None else len(excluded)))
    high = top_k_per_row(_without(scores, excluded, -torch.inf), k)
    low = top_k_per_row(_without(scores, excluded, torch.inf), k, largest=False)
    return RankedTokens(*high, *low)


def _without(scores: Tensor, excluded: Tensor | None, value: float) -> Tensor:
    return scores if excluded is None else scores.index_fill(1, excluded, value)

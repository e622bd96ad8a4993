"""Both ends of rankings of the vocabulary, by scoring every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.scalars.best_entries import top_k_per_row

_CHUNK = 256
"""Directions scored at once: bounds the scores, which are [_CHUNK, V]."""


@dataclass(frozen=True)
class RankedTokens:
    """The highest and the lowest tokens along m directions, best first: scores and token ids [m, k]."""

    high: Tensor
    high_ids: Tensor
    low: Tensor
    low_ids: Tensor


def rank_vocabulary(
    vocabulary: Tensor, directions: Tensor, k: int, excluded: Tensor | None = None
) -> RankedTokens:
    """Ranks a vocabulary [V, d] along directions [m, d].

    Args:
        excluded: token ids that are never ranked.
    """
    return joined(
        rank_scores(F.linear(part, vocabulary), k, excluded) for part in torch.split(directions, _CHUNK)
    )


def rank_scores(scores: Tensor, k: int, excluded: Tensor | None = None) -> RankedTokens:
    """Both ends of rows of scores [m, V]."""
    k = min(k, scores.shape[1] - (0 if excluded is None else len(excluded)))
    high = top_k_per_row(_without(scores, excluded, -torch.inf), k)
    low = top_k_per_row(_without(scores, excluded, torch.inf), k, largest=False)
    return RankedTokens(*high, *low)


def _without(scores: Tensor, excluded: Tensor | None, value: float) -> Tensor:
    return scores if excluded is None else scores.index_fill(1, excluded, value)


def joined(parts: Iterable[RankedTokens]) -> RankedTokens:
    """Rankings along some directions, then along others."""
    fields = zip(*((one.high, one.high_ids, one.low, one.low_ids) for one in parts), strict=True)
    return RankedTokens(*(torch.cat(one) for one in fields))

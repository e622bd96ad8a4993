"""Vocabulary tokens scored against nodes: what a node's write upvotes, and what input tokens its read upvotes.

Many nodes share a direction up to scale (all uses of one neuron write along one row of its output weights), so each
distinct direction is multiplied with the vocabulary once, and its ten best tokens are scaled for each node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.results import TopTokens


RankedScores = tuple[Tensor, Tensor, Tensor, Tensor]
"""Largest scores, their token ids, smallest scores, their token ids: [m, n_tokens] each."""


@dataclass(frozen=True)
class Directions:
    """Directions to score, and how each node uses one.

    Attributes:
        vectors: distinct directions [m, d].
        rows: for each of n scored nodes, its direction.
        scales: what its direction is multiplied with [n].
    """

    vectors: Tensor
    rows: Tensor
    scales: Tensor


def rank_vocabulary(
    directions: Directions, vocabulary: Tensor, n_tokens: int, excluded: Tensor | None = None, centred: bool = False
) -> TopTokens:
    """The vocabulary's best and worst tokens along each node's direction.

    Args:
        vocabulary: [V, d].
        n_tokens: how many at either end.
        excluded: token ids that are never listed.
        centred: whether each node's mean score over the vocabulary is subtracted.
    """
    n_tokens = min(n_tokens, len(vocabulary) - (0 if excluded is None else len(excluded)))
    parts = [
        rank_scores(F.linear(part, vocabulary), n_tokens, excluded, centred) for part in directions.vectors.split(256)
    ]
    return scaled(parts, directions.rows, directions.scales)


def scaled(parts: Sequence[RankedScores], rows: Tensor, scales: Tensor) -> TopTokens:
    """Each node's token lists: those of its direction, scaled; a negative scale swaps top and bottom."""
    high, high_ids, low, low_ids = (torch.cat(one) for one in zip(*parts, strict=True))
    scales = scales[:, None]
    is_flipped = scales < 0
    top = torch.where(is_flipped, low[rows], high[rows]) * scales
    bottom = torch.where(is_flipped, high[rows], low[rows]) * scales
    top_ids = torch.where(is_flipped, low_ids[rows], high_ids[rows])
    bottom_ids = torch.where(is_flipped, high_ids[rows], low_ids[rows])
    leading = torch.maximum(top[:, :1].abs(), bottom[:, :1].abs())
    leading = torch.where(leading == 0, torch.ones_like(leading), leading)
    as_floats = [x.float().cpu().numpy() for x in (top, top / leading, bottom, bottom / leading)]
    as_ids = [x.to(torch.int32).cpu().numpy() for x in (top_ids, bottom_ids)]
    return TopTokens(as_ids[0], as_floats[0], as_floats[1], as_ids[1], as_floats[2], as_floats[3])


def rank_scores(
    scores: Tensor, n_tokens: int, excluded: Tensor | None = None, centred: bool = False
) -> RankedScores:
    """The best and worst tokens of each row of scores [m, V]: values and token ids at either end, [m, n_tokens]."""
    mean = scores.mean(dim=1, keepdim=True) if centred else torch.zeros_like(scores[:, :1])
    high, high_ids = top_k_per_row(scores if excluded is None else _without(scores, excluded, -torch.inf), n_tokens)
    low, low_ids = top_k_per_row(
        scores if excluded is None else _without(scores, excluded, torch.inf), n_tokens, largest=False
    )
    return high - mean, high_ids, low - mean, low_ids


def _without(scores: Tensor, excluded: Tensor, value: float) -> Tensor:
    return scores.index_fill(1, excluded, value)


def top_k_per_row(scores: Tensor, k: int, largest: bool = True, block: int = 64) -> tuple[Tensor, Tensor]:
    """The k best of each row [m, V]: values and indices [m, k], best first.

    A row's k best lie in its k blocks with the best entries, so only those are sorted.
    """
    n_rows, n_columns = scores.shape
    n_blocks = n_columns // block
    if n_blocks <= 4 * k:
        return scores.topk(k, dim=1, largest=largest)
    whole = scores[:, : n_blocks * block].unflatten(1, (n_blocks, block))
    best = whole.amax(dim=2) if largest else whole.amin(dim=2)
    chosen = best.topk(k, dim=1, largest=largest, sorted=False).indices  # [m, k]
    candidates = whole.gather(1, chosen[:, :, None].expand(-1, -1, block)).flatten(1)
    indices = (chosen[:, :, None] * block + torch.arange(block, device=scores.device)).flatten(1)
    rest = torch.arange(n_blocks * block, n_columns, device=scores.device).expand(n_rows, -1)
    candidates = torch.cat((candidates, scores[:, n_blocks * block :]), dim=1)
    indices = torch.cat((indices, rest), dim=1)
    values, position = candidates.topk(k, dim=1, largest=largest)
    return values, indices.gather(1, position)


def no_tokens() -> TopTokens:
    """Token lists of no node."""
    ids, floats = np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)
    return TopTokens(ids, floats, floats, ids, floats, floats)


def distinct(keys: Sequence[object]) -> tuple[list[int], list[int]]:
    """Positions of the first of each distinct key, and for each key which of those it equals."""
    first: dict[object, int] = {}
    positions, rows = [], []
    for position, key in enumerate(keys):
        if key not in first:
            first[key] = len(positions)
            positions.append(position)
        rows.append(first[key])
    return positions, rows

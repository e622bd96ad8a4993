"""Vocabulary tokens scored along directions: what a node's write upvotes, and what upvotes the node.

Scoring reads the whole vocabulary matrix, which for a short prompt costs more than the model itself. Many
nodes share a direction up to scale (all uses of one neuron write along one row of its output weights), in
one call and in the next. So each distinct direction is ranked once, its best tokens are remembered under
the direction's own bytes, and a node's list is its direction's, scaled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.results import FloatArray, IntArray, TopTokens
from tdb_server.model.decoder import Decoder


@dataclass(frozen=True)
class Ranked:
    """Both ends of rankings of the vocabulary, best first: arrays [m, n_tokens], or [n_tokens] for one."""

    high: FloatArray
    high_ids: IntArray
    low: FloatArray
    low_ids: IntArray

    def __getitem__(self, row: int) -> Ranked:
        return Ranked(self.high[row], self.high_ids[row], self.low[row], self.low_ids[row])


class TokenScorer:
    """Ranks a model's vocabulary along directions, and remembers what it ranked."""

    def __init__(self, decoder: Decoder, excluded: Sequence[int] = (), max_remembered: int = 65_536) -> None:
        """Starts with nothing remembered.

        Args:
            excluded: token ids that are never listed.
            max_remembered: directions whose rankings are kept, least recently used dropped first.
        """
        self._decoder = decoder
        self._excluded = torch.tensor(list(excluded), device=decoder.device) if excluded else None
        self._remembered: OrderedDict[tuple[bool, int, bytes], Ranked] = OrderedDict()
        self._max_remembered = max_remembered

    def outputs(self, writes: Tensor, scales: Tensor, n_tokens: int) -> TopTokens:
        """Output tokens that writes upvote, the mean over the vocabulary subtracted.

        Args:
            writes: what is added to the last residual stream, per unit of scale [n, d].
            scales: [n].
        """
        gained = writes * self._decoder.weights.final_norm.gain
        return scaled(self._rank_all(gained, n_tokens, is_output=True), scales)

    def inputs(self, reads: Tensor, scales: Tensor, n_tokens: int) -> TopTokens:
        """Input tokens whose embeddings upvote what is read along directions [n, d], times scales [n]."""
        return scaled(self._rank_all(reads, n_tokens, is_output=False), scales)

    def ranked(self, scores: Tensor, n_tokens: int, *, is_centred: bool = False) -> Ranked:
        """Both ends of rows of scores [m, V], each row's mean subtracted if centred."""
        n_tokens = min(n_tokens, scores.shape[1] - (0 if self._excluded is None else len(self._excluded)))
        mean = scores.mean(dim=1, keepdim=True) if is_centred else torch.zeros_like(scores[:, :1])
        high, high_ids = top_k_per_row(self._without_excluded(scores, -torch.inf), n_tokens)
        low, low_ids = top_k_per_row(self._without_excluded(scores, torch.inf), n_tokens, largest=False)
        return Ranked(_floats(high - mean), _ids(high_ids), _floats(low - mean), _ids(low_ids))

    def _without_excluded(self, scores: Tensor, value: float) -> Tensor:
        return scores if self._excluded is None else scores.index_fill(1, self._excluded, value)

    def _rank_all(self, directions: Tensor, n_tokens: int, *, is_output: bool) -> Ranked:
        """The ranking along every direction [n, d], computed for those not remembered."""
        rows = _floats(directions)
        keys = [(is_output, n_tokens, blake2b(row.tobytes(), digest_size=16).digest()) for row in rows]
        found = {key: self._remembered[key] for key in keys if key in self._remembered}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        weights = self._decoder.weights
        vocabulary = weights.unembedding if is_output else weights.token_embedding
        chunk = 256  # directions scored at once: bounds the [chunk, V] scores
        for start in range(0, len(missing), chunk):
            part = list(missing)[start : start + chunk]
            scores = F.linear(directions[[missing[key] for key in part]], vocabulary)
            ranked = self.ranked(scores, n_tokens, is_centred=is_output)
            found |= {key: ranked[row] for row, key in enumerate(part)}
        self._remember(found)
        return _stacked([found[key] for key in keys])

    def _remember(self, found: dict[tuple[bool, int, bytes], Ranked]) -> None:
        for key, ranked in found.items():
            self._remembered[key] = ranked
            self._remembered.move_to_end(key)
        while len(self._remembered) > self._max_remembered:
            self._remembered.popitem(last=False)


def _floats(x: Tensor) -> FloatArray:
    array: FloatArray = (x.float() if x.dtype.itemsize < 4 else x).cpu().numpy()
    return array


def _ids(x: Tensor) -> IntArray:
    array: IntArray = x.to(torch.int32).cpu().numpy()
    return array


def _stacked(ranked: Sequence[Ranked]) -> Ranked:
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


def top_k_per_row(scores: Tensor, k: int, largest: bool = True, block: int = 64) -> tuple[Tensor, Tensor]:
    """The k best of each row [m, V]: values and indices [m, k], best first.

    A row's k best lie in its k blocks with the best entries, so only those are sorted.
    """
    n_rows, n_columns = scores.shape
    n_blocks = n_columns // block
    if n_blocks <= 4 * k:
        found = scores.topk(k, dim=1, largest=largest)
        return found.values, found.indices
    whole = scores[:, : n_blocks * block].view(n_rows, n_blocks, block)
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

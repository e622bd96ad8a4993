"""Both ends of rankings of the vocabulary, without scoring every token exactly.

On a CPU, products of 8-bit integers run several times faster than those of floats. They give a rough score of
every token and a bound on its error; only tokens that may stand in the ranking are then scored exactly. For a
direction x and a token's vector w, both as 8-bit integers times a step (x ≈ s p, w ≈ c q), Cauchy and Schwarz
say

    | x · w / (s c)  -  p · q |   ≤   ‖x/s - p‖ ‖q‖  +  ‖x/s‖ ‖w/c - q‖

Steps are small where no channel stands out. In trained vocabularies some do: hence the mean of all tokens is
taken off, which moves every score alike, and all is rotated at random (Ashkboos et al. 2024, "QuaRot").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.scalars.token_ranking import RankedTokens, joined, rank_vocabulary

_LARGEST = 127
"""Of the 8-bit integers that are used."""
_BLOCK = 64
"""Neighbouring tokens that are looked at together first."""
_CHUNK = 64
"""Directions ranked at once: bounds the rough scores, which are [_CHUNK, V].

Fewer are filled up to as many: for every new shape of a product, machine code is made first, which takes
longer than the product itself.
"""
_MAX_CANDIDATES = 2048
"""Along a direction with more candidates, scoring every token is as fast."""
_ROUNDING = 1.001
"""Room for the rounding of the bound's own arithmetic, and of exact scores."""


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
    """Ranks a vocabulary [V, d], of which it keeps a copy in 8 bits."""

    def __init__(self, vocabulary: Tensor, excluded: Tensor | None = None) -> None:
        """Costs about as much as scoring 3 d directions.

        Args:
            excluded: token ids that are never ranked.
        """
        n_tokens, d_model = vocabulary.shape
        self._vocabulary, self._excluded = vocabulary, excluded
        is_ranked = torch.ones(n_tokens, dtype=torch.bool)
        if excluded is not None:
            is_ranked[excluded] = False
        self._ids = is_ranked.nonzero()[:, 0]
        self._mean = vocabulary[self._ids].mean(dim=0)
        normal = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))
        self._rotation = torch.linalg.qr(normal).Q
        largest = [part.abs().amax(dim=0) for _, part in self._rotated_parts()]
        self._steps = _step(torch.stack(largest).amax(dim=0))  # [d], one for each channel
        n_columns = -(-len(self._ids) // _BLOCK) * _BLOCK
        self._quantized = torch.empty(n_columns, d_model, dtype=torch.int8)
        self._largest_norm = self._largest_error = torch.zeros(())
        for start, part in self._rotated_parts():
            exact = part / self._steps
            quantized = exact.round()
            self._quantized[start : start + len(part)] = quantized
            self._largest_norm = self._largest_norm.maximum(quantized.norm(dim=1).amax())
            self._largest_error = self._largest_error.maximum((exact - quantized).norm(dim=1).amax())
        self._quantized[len(self._ids) :] = self._quantized[len(self._ids) - 1]  # fills up the last block
        self._products = torch.empty(_CHUNK, n_columns, dtype=torch.int32)

    def _rotated_parts(self, n_rows: int = 4096) -> Iterator[tuple[int, Tensor]]:
        """The vocabulary centred and rotated, in parts: their first rows, and they."""
        for start in range(0, len(self._ids), n_rows):
            yield start, (self._vocabulary[self._ids[start : start + n_rows]] - self._mean) @ self._rotation

    def rank(self, directions: Tensor, k: int) -> RankedTokens:
        """The k highest and lowest tokens along directions [m, d], the same as if all were scored."""
        if 4 * k * _BLOCK > len(self._quantized):
            return rank_vocabulary(self._vocabulary, directions, k, self._excluded)
        return joined(self._rank_chunk(part, k) for part in torch.split(directions, _CHUNK))

    def _rank_chunk(self, directions: Tensor, k: int) -> RankedTokens:
        rows, ids = self._candidates(directions, k)
        counts = rows.bincount(minlength=len(directions))
        if counts.amin() < k or counts.amax() > _MAX_CANDIDATES:  # as along zero, or what is not a number
            return rank_vocabulary(self._vocabulary, directions, k, self._excluded)
        starts = F.pad(counts.cumsum(0), (1, 0))
        scores = self._scores_of_lists(directions, starts, ids)
        spots = torch.arange(len(rows)) - starts[rows]  # each candidate's place in its row
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
            The candidates' directions and their token ids, ordered by both: two tensors [n].
        """
        products, steps, bounds = self._rough_scores(directions)
        blocks = products.view(len(directions), -1, _BLOCK)
        highest, lowest = blocks.amax(dim=2), blocks.amin(dim=2)  # [m, n_blocks]
        some_high = _best_of_best_blocks(blocks, highest, k, largest=True)
        some_low = _best_of_best_blocks(blocks, lowest, k, largest=False)
        known = self._scores_of_columns(directions, torch.cat((some_high, some_low), dim=1))
        known = (known - directions @ self._mean[:, None]) / steps  # [m, 2k]
        at_least = (known[:, :k].amin(dim=1, keepdim=True) - bounds).ceil().int()  # [m, 1]
        at_most = (known[:, k:].amax(dim=1, keepdim=True) + bounds).floor().int()
        rows, chosen = ((highest >= at_least) | (lowest <= at_most)).nonzero().unbind(1)
        members = products.view(-1, _BLOCK).index_select(0, rows * blocks.shape[1] + chosen)
        entries, within = ((members >= at_least[rows]) | (members <= at_most[rows])).nonzero().unbind(1)
        columns = chosen[entries] * _BLOCK + within
        is_token = columns < len(self._ids)
        return rows[entries[is_token]], self._ids[columns[is_token]]

    def _rough_scores(self, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rough scores [m, V], as integers; the steps they count and the bounds on their errors [m, 1]."""
        rotated = directions @ self._rotation * self._steps
        steps = _step(rotated.abs().amax(dim=1, keepdim=True))
        exact = rotated / steps
        quantized = exact.round()
        of_direction = (exact - quantized).norm(dim=1, keepdim=True) * self._largest_norm
        of_vocabulary = exact.norm(dim=1, keepdim=True) * self._largest_error
        filled_up = F.pad(quantized.to(torch.int8), (0, 0, 0, _CHUNK - len(directions)))
        torch._int_mm(filled_up, self._quantized.T, out=self._products)  # noqa: SLF001, torch has no other
        return self._products[: len(directions)], steps, (of_direction + of_vocabulary) * _ROUNDING

    def _scores_of_columns(self, directions: Tensor, columns: Tensor) -> Tensor:
        """Exact scores of as many tokens along each direction: columns [m, n] to [m, n]."""
        ids = self._ids[columns.flatten().clamp(max=len(self._ids) - 1)]
        vectors = self._vocabulary.index_select(0, ids).view(*columns.shape, -1)
        return torch.einsum("mnd,md->mn", vectors, directions)

    def _scores_of_lists(self, directions: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
        """Exact scores of tokens [n]: along direction i those from `starts[i]` to `starts[i + 1]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sparse matrices are in beta, it says
            wanted = torch.sparse_csr_tensor(
                starts, ids, directions.new_zeros(len(ids)), (len(directions), len(self._vocabulary))
            )
        scores: Tensor = torch.sparse.sampled_addmm(wanted, directions, self._vocabulary.T, beta=0).values()
        return scores


def _step(largest: Tensor) -> Tensor:
    """The step with which numbers up to `largest` become 8-bit integers."""
    return largest.clamp(min=1e-30) / _LARGEST


def _best_of_best_blocks(blocks: Tensor, best: Tensor, k: int, largest: bool) -> Tensor:
    """The best column of each of the k blocks with the best ones [m, k]; no column twice."""
    chosen = best.topk(k, dim=1, largest=largest, sorted=False).indices
    members = blocks[torch.arange(len(blocks))[:, None], chosen]  # [m, k, _BLOCK]
    within = members.argmax(dim=2) if largest else members.argmin(dim=2)
    return chosen * _BLOCK + within

"""The first door for speed: the k largest, or smallest, numbers of a product, for each row.

`topk` of every part lists a few more than k; the best of all lists are the best of all. On a CPU `topk` looks
at the bests of blocks first (`block_maxima`).

Numbers that are exactly zero explain nothing and are never chosen, nor what is not a number; but zeros take
places: what is below the k-th best is not listed, though that is zero. Every latent that is not active is
such a zero. Of equals, those first by layer and index are chosen; a part whose list ends among them is looked
through again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.engine.block_maxima import SMALL, top_k_per_row
from tdb_server.engine.products import Part, Product
from tdb_server.engine.transfers import Array, download


@dataclass(frozen=True)
class BestNodes:
    """The best nodes of a row, best first.

    Attributes:
        nodes: layer, -1 for what has no layers, and indices in node order [m, 1 + n_axes].
        ranks: how many entries are better than each, zeros among them [m].
    """

    nodes: Array
    ranks: Array

    def first(self, k: int) -> Array:
        """Those among the k best."""
        found: Array = self.nodes[self.ranks < k]
        return found


@dataclass(frozen=True)
class _Entries:
    """Some entries of a part.

    Attributes:
        rows: of the group [m].
        better: the numbers, or where the smallest are wanted, their negatives [m].
        places: behind the row axis [m].
        ids: of latents, which they are [m].
    """

    part: Part
    rows: Array
    better: Array
    places: Array
    ids: Sequence[Array]

    def where(self, is_wanted: Array) -> _Entries:
        """Some of them."""
        others = [one[is_wanted] for one in self.ids]
        return _Entries(
            self.part, self.rows[is_wanted], self.better[is_wanted], self.places[is_wanted], others
        )


class TopNodes:
    """Ranks a product's numbers part by part; what must be read on the host can wait for other rankings."""

    def __init__(self, product: Product, ks: Sequence[int], largest: bool, first_layer: int = 0) -> None:
        """Takes how many nodes each row wants, and the place of the first layer that is looked at."""
        self.product, self._ks, self._largest, self._first_layer = product, ks, largest, first_layer
        self._parts: list[Part] = []
        self.tensors: list[Tensor] = []

    def add(self, part: Part, numbers: Tensor) -> None:
        """Lists a part's best numbers, and places of them: `tensors` are needed on the host."""
        if part.layer is not None and part.layer < self._first_layer:
            return
        entries = self._ranked(part, numbers)
        if not entries.shape[1]:
            return
        n_entries, n_layers = entries.shape[1], 1 if part.layer is not None else len(self.product.layers)
        k = max(self._ks) + 1 + n_layers * self.product.n_ties  # one more shows ties
        # Of equals that no layer has, as all embeddings' "activations", it goes by how `topk` ranks all.
        is_listed = self.product.layers == (None,) and n_entries <= SMALL
        values, places = top_k_per_row(entries, n_entries if is_listed else min(k, n_entries), self._largest)
        self._parts.append(part)
        self.tensors += [values, places]
        if self.product.ids is not None:
            self.tensors.append(self._ids(part).gather(1, places))

    def _ranked(self, part: Part, numbers: Tensor) -> Tensor:
        """A part's numbers by row [b, n]: zero where there are no nodes, last where there is nothing."""
        if self.product.not_nodes is not None:
            numbers = numbers.masked_fill(self.product.cut(self.product.not_nodes, part), 0)
        if self.product.absent is not None:
            nothing = -math.inf if self._largest else math.inf
            numbers = numbers.masked_fill(self.product.cut(self.product.absent, part), nothing)
        return self._seen(part, numbers).flatten(1)

    def _ids(self, part: Part) -> Tensor:
        """Which latents a part's entries are, by row [b, n]."""
        assert self.product.ids is not None
        return self._seen(part, self.product.cut(self.product.ids, part)).flatten(1)

    def _seen(self, part: Part, x: Tensor) -> Tensor:
        return x[:, self._first_layer :] if part.layer is None and self._first_layer else x

    def best(self, arrays: Sequence[Array]) -> list[BestNodes]:
        """The k best of each row, given `tensors` on the host."""
        waiting = iter(arrays)
        listed = []
        for part in self._parts:
            values, places, *ids = (next(waiting) for _ in range(2 if self.product.ids is None else 3))
            rows = np.arange(part.rows.start, part.rows.stop).repeat(values.shape[1])
            better = values if self._largest else -values
            listed.append(_Entries(part, rows, better.ravel(), places.ravel(), [one.ravel() for one in ids]))
        if not listed:
            return [
                BestNodes(np.zeros((0, 1 + len(self.product.axes)), np.int64), np.zeros(0, np.int64))
            ] * len(self._ks)
        n_zeros = self._n_zeros()
        least = self._least(listed, n_zeros)
        entries = [self._completed(one, least) for one in listed]
        if self.product.layers != (None,):
            entries = [one.where(one.better >= least[one.rows]) for one in entries]
        entries = [one.where(one.better > -math.inf) for one in entries]
        rows, better = (
            np.concatenate([getattr(one, name) for one in entries]) for name in ("rows", "better")
        )
        nodes = np.concatenate([self._nodes(one) for one in entries])
        return [
            self._best(better[own], nodes[own], k, n_zeros[row])
            for row, k in enumerate(self._ks)
            for own in [rows == row]
        ]

    def _least(self, listed: Sequence[_Entries], n_zeros: Sequence[int]) -> Array:
        """The k-th best number of each row, zeros beside the entries included; -inf where there are fewer."""
        rows, better = (np.concatenate([getattr(one, name) for one in listed]) for name in ("rows", "better"))
        found = np.full(len(self._ks), -math.inf, better.dtype)
        for row, k in enumerate(self._ks):
            own = better[(rows == row) & ~np.isnan(better)]
            own = np.concatenate([own, np.zeros(min(n_zeros[row], k), own.dtype)])
            if len(own) >= k:
                found[row] = np.partition(own, -k)[-k]
        return found

    def _completed(self, listed: _Entries, least: Array) -> _Entries:
        """A part's list, or all of its entries that are good enough where the list may leave some out."""
        part, rows = listed.part, slice(listed.part.rows.start, listed.part.rows.stop)
        better = listed.better.reshape(rows.stop - rows.start, -1)
        is_whole = better.shape[1] == math.prod(self._shape(part))
        last, own = better[:, -1], least[rows]
        is_cut = (last >= own) & (last != 0) & (last != -math.inf)
        if is_whole or not (is_cut.any() or np.isnan(better).any()):
            return listed
        entries = self._ranked(part, self.product.numbers(part))
        all_better = entries if self._largest else -entries
        is_good = all_better >= torch.from_numpy(own).to(all_better)[:, None]
        in_part, places = is_good.nonzero().unbind(1)
        wanted = [in_part, all_better[in_part, places], places]
        if self.product.ids is not None:
            wanted.append(self._ids(part)[in_part, places])
        found_rows, found, found_places, *ids = download(wanted)
        return _Entries(part, found_rows + rows.start, found, found_places, ids)

    def _shape(self, part: Part) -> tuple[int, ...]:
        """Of a part's entries behind the row axis."""
        _, n_layers, *others = self.product.shape(part)
        return (n_layers - self._first_layer if part.layer is None else 1, *others)

    def _nodes(self, entries: _Entries) -> Array:
        part = entries.part
        skipped = self._first_layer * math.prod(self._shape(part)[1:]) if part.layer is None else 0
        found = self.product.nodes(part, entries.rows, entries.places + skipped)
        for ids in entries.ids:
            found[:, -1] = ids
        return found

    def _n_zeros(self) -> list[int]:
        """How many zeros each row has beside the entries of its parts: latents that stand nowhere in them."""
        product = self.product
        if product.ids is None:
            return [0] * product.n_rows
        n_layers, n_side_by_side = len(product.layers) - self._first_layer, product.ids.tensors[0].shape[-1]
        tokens = product.tokens
        n_covered = product.lengths if tokens is None else [len(set(own)) for own in tokens.tolist()]
        return [
            n_layers * (length * product.n_latents - n_tokens * n_side_by_side)
            for length, n_tokens in zip(product.lengths, n_covered, strict=True)
        ]

    def _best(self, better: Array, nodes: Array, k: int, n_zeros: int) -> BestNodes:
        """The k best of some entries of one row, in order; never a zero."""
        if n_zeros:
            better = np.concatenate([better, np.zeros(min(n_zeros, k), better.dtype)])
            nodes = np.concatenate([nodes, np.zeros((min(n_zeros, k), nodes.shape[1]), nodes.dtype)])
        order = np.lexsort(nodes.T[::-1])
        better, nodes = better[order], nodes[order]
        if self.product.layers == (None,):
            order = torch.from_numpy(better).topk(min(k, len(better))).indices.numpy()
        else:
            order = np.argsort(-better, kind="stable")[:k]
        is_node = better[order] != 0
        return BestNodes(nodes[order][is_node], np.flatnonzero(is_node))

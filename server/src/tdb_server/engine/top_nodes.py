"""The k largest, or smallest, numbers of a product, for each row.

Here and in `rank_tokens` lines buy speed: the plain version is one `torch.topk` of all numbers. `topk` of
every part lists a few more than k; the best of all lists are the best of all. On a CPU `topk` looks at the
bests of blocks first (`block_maxima`).

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


Entries = tuple[Array, Array, Array]
"""Rows of the group [m], numbers (their negatives where the smallest are wanted) [m], and nodes [m, ...]."""


class TopNodes:
    """Ranks a product's numbers part by part; what must be read on the host can wait for other rankings."""

    def __init__(self, product: Product, ks: Sequence[int], largest: bool, first_layer: int = 0) -> None:
        """Takes how many nodes each row wants, and the place of the first layer that is looked at."""
        self.product, self._ks, self._largest, self._first_layer = product, ks, largest, first_layer
        self._parts: list[tuple[Part, int]] = []  # each with its number of entries in a row
        self.tensors: list[Tensor] = []

    def add(self, part: Part, numbers: Tensor) -> None:
        """Lists a part's best numbers, and places of them: `tensors` are needed on the host."""
        if part.layer is not None and part.layer < self._first_layer:
            return
        entries = self._ranked(part, numbers)
        n_entries, n_layers = entries.shape[1], 1 if part.layer is not None else len(self.product.layers)
        if not n_entries:
            return
        k = min(max(self._ks) + 1 + n_layers * self.product.n_ties, n_entries)  # one more shows ties
        # What has no layers, as embeddings, whose "activations" are all 1, keeps among equals the order that
        # `topk` of all entries has (decision 0005): while they are few all are listed, and `_best` asks it.
        is_listed = self.product.layers == (None,) and n_entries <= SMALL
        values, places = top_k_per_row(entries, n_entries if is_listed else k, self._largest)
        self._parts.append((part, n_entries))
        self.tensors += [values, places]
        if self.product.ids is not None:
            self.tensors.append(self._seen(part, self.product.cut(self.product.ids, part)).gather(1, places))

    def _ranked(self, part: Part, numbers: Tensor) -> Tensor:
        """A part's numbers by row [b, n]: zero where there are no nodes, last where there is nothing."""
        if self.product.not_nodes is not None:
            numbers = numbers.masked_fill(self.product.cut(self.product.not_nodes, part), 0)
        if self.product.absent is not None:
            nothing = -math.inf if self._largest else math.inf
            numbers = numbers.masked_fill(self.product.cut(self.product.absent, part), nothing)
        return self._seen(part, numbers)

    def _seen(self, part: Part, x: Tensor) -> Tensor:
        """What a part has in the layers that are looked at, by row [b, n]."""
        return (x[:, self._first_layer :] if part.layer is None and self._first_layer else x).flatten(1)

    def best(self, arrays: Sequence[Array]) -> list[BestNodes]:
        """The k best of each row, given `tensors` on the host."""
        waiting = iter(arrays)
        n_zeros, entries = self._n_zeros(), [self._no_entries()]
        lists = [[next(waiting) for _ in range(2 if self.product.ids is None else 3)] for _ in self._parts]
        for (part, _), (values, places, *ids) in zip(self._parts, lists, strict=True):
            rows = np.arange(part.rows.start, part.rows.stop).repeat(values.shape[1])
            entries.append(self._entries(part, rows, *(one.ravel() for one in (values, places, *ids))))
        least = self._least(entries, n_zeros)
        for index, ((part, n_entries), (values, *_)) in enumerate(zip(self._parts, lists, strict=True), 1):
            if values.shape[1] < n_entries and self._may_lack_some(values, least[part.rows]):
                entries[index] = self._looked_through(part, least[part.rows])
        rows, signed, nodes = (np.concatenate(one) for one in zip(*entries, strict=True))
        is_good = signed > -math.inf
        if self.product.layers != (None,):
            is_good &= signed >= least[rows]
        return [
            self._best(signed[own], nodes[own], k, n_zeros[row])
            for row, k in enumerate(self._ks)
            for own in [is_good & (rows == row)]
        ]

    def _no_entries(self) -> Entries:
        return (
            np.zeros(0, np.int64),
            np.zeros(0, np.float32),
            np.zeros((0, 1 + len(self.product.axes)), np.int64),
        )

    def _entries(
        self, part: Part, rows: Array, values: Array, places: Array, ids: Array | None = None
    ) -> Entries:
        """Some of a part's entries, by row of the group and place behind it."""
        n_left_out = self._first_layer * math.prod(self.product.shape(part)[2:]) if part.layer is None else 0
        nodes = self.product.nodes(part, rows, places + n_left_out)
        if ids is not None:
            nodes[:, -1] = ids
        return rows, values if self._largest else -values, nodes

    def _least(self, entries: Sequence[Entries], n_zeros: Sequence[int]) -> Array:
        """The k-th best number of each row, zeros beside the entries included; -inf where there are fewer."""
        rows, signed = (np.concatenate([one[axis] for one in entries]) for axis in (0, 1))
        least = np.full(len(self._ks), -math.inf, signed.dtype)
        for row, k in enumerate(self._ks):
            of_row = signed[(rows == row) & ~np.isnan(signed)]
            of_row = np.concatenate([of_row, np.zeros(min(n_zeros[row], k), of_row.dtype)])
            if len(of_row) >= k:
                least[row] = np.partition(of_row, -k)[-k]
        return least

    def _may_lack_some(self, values: Array, least: Array) -> bool:
        """Whether a list [b, k] ends among a row's equals, or what is not a number takes places in it."""
        last = values[:, -1] if self._largest else -values[:, -1]
        is_cut = (last >= least) & (last != 0) & (last != -math.inf)
        return bool(is_cut.any() or np.isnan(values).any())

    def _looked_through(self, part: Part, least: Array) -> Entries:
        """All of a part's entries that are good enough."""
        entries = self._ranked(part, self.product.numbers(part))
        limit = torch.from_numpy(least).to(entries)[:, None]
        rows, places = (entries >= limit if self._largest else entries <= -limit).nonzero().unbind(1)
        to_download = [rows, entries[rows, places], places]
        if self.product.ids is not None:
            ids = self._seen(part, self.product.cut(self.product.ids, part))
            to_download.append(ids[rows, places])
        found_rows, *others = download(to_download)
        return self._entries(part, found_rows + part.rows.start, *others)

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

    def _best(self, signed: Array, nodes: Array, k: int, n_zeros: int) -> BestNodes:
        """The k best of some entries of one row, in order; never a zero."""
        if n_zeros:
            signed = np.concatenate([signed, np.zeros(min(n_zeros, k), signed.dtype)])
            nodes = np.concatenate([nodes, np.zeros((min(n_zeros, k), nodes.shape[1]), nodes.dtype)])
        order = np.lexsort(nodes.T[::-1])
        signed, nodes = signed[order], nodes[order]
        if self.product.layers == (None,):
            order = torch.from_numpy(signed).topk(min(k, len(signed))).indices.numpy()
        else:
            order = np.argsort(-signed, kind="stable")[:k]
        is_node = signed[order] != 0
        return BestNodes(nodes[order][is_node], np.flatnonzero(is_node))

"""The first door for speed: the k largest, or smallest, numbers of a product, for each row.

`PlainTop` is the meaning: `topk` of all numbers of a part. `BlockMaxima` gives the same without ranking them
all: a row's k best lie in the k blocks of neighbours with the best bests. One cheap pass finds every block's
best; only the chosen blocks are looked at again. With blocks of about sqrt(n / k) entries both steps rank
equally few.

Numbers that are exactly zero explain nothing and are never chosen, nor what is not a number; but zeros take
places: what is below the k-th best is not listed, though that is zero. Every latent that is not active is
such a zero. Of equals, those first by layer and index are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.engine.block_maxima import block_size, top_k_per_row
from tdb_server.engine.products import Part, Product, nodes_of
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
class Numbers:
    """A part's numbers, where zero stands for what must not be chosen.

    Attributes:
        part: with the factors, so that some numbers can be computed again.
        values: [b, l, ...].
        tokens: where given, the one token of each row on whose numbers these are.
    """

    part: Part
    values: Tensor
    tokens: OneToken | None = None


@dataclass(frozen=True)
class OneToken:
    """One token of each row of a part.

    Attributes:
        tokens: as they are called [b].
        is_covered: whether the part has them [b], on the host.
        places: where they are on the part's token axis [b].
    """

    tokens: Array
    is_covered: Array
    places: Tensor


def numbers_at_tokens(
    product: Product, part: Part, values: Tensor, tokens: Array, *, largest: bool
) -> Numbers:
    """A part's numbers, as they are ranked, at one token of each row: `tokens` [b].

    Where the part does not have a row's token, there is nothing to rank.
    """
    axis = 2 + product.axes.index(product.token_dimension)
    covered = np.arange(product.n_tokens)[None] if product.tokens is None else product.tokens[part.rows]
    is_it = covered == tokens[:, None]
    of_part = is_it.argmax(axis=1) - part.first_token  # what stands there again is padding
    is_covered = is_it.any(axis=1) & (of_part >= 0) & (of_part < values.shape[axis])
    places = torch.from_numpy(np.where(is_covered, of_part, 0)).to(values.device)
    rows = torch.arange(len(values), device=values.device)
    picked = values.movedim(axis, 1)[rows, places].unsqueeze(axis)
    if not is_covered.all():
        missing = torch.from_numpy(~is_covered).to(values.device)
        picked = picked.masked_fill(missing.view(-1, *[1] * (picked.dim() - 1)), _nothing(largest=largest))
    return Numbers(part, picked, OneToken(tokens, is_covered, places))


def _nothing(*, largest: bool) -> float:
    """What stands where there is nothing to rank."""
    return -math.inf if largest else math.inf


def _again(product: Product, numbers: Numbers, rows: Tensor, flat: Tensor, *, largest: bool) -> Tensor:
    """Some entries as they are ranked, computed again, by row of the part and place behind it: [m]."""
    index = [rows, *torch.unravel_index(flat, numbers.values.shape[1:])]
    if numbers.tokens is not None:
        index[2 + product.axes.index(product.token_dimension)] = numbers.tokens.places[rows]
    values = numbers.part.at(tuple(index))
    index[0], index[1] = rows + numbers.part.rows.start, index[1] + numbers.part.first_layer
    if product.token_dimension in product.axes:
        axis = 2 + product.axes.index(product.token_dimension)
        index[axis] = index[axis] + numbers.part.first_token
    if product.not_nodes is not None:
        values = values.masked_fill(product.not_nodes[index[-2], index[-1]], 0)
    if product.absent is not None:
        sizes = product.absent.shape
        within = [0 if size == 1 else one for size, one in zip(sizes, index, strict=True)]
        values = values.masked_fill(product.absent[tuple(within)], _nothing(largest=largest))
    if numbers.tokens is not None and not numbers.tokens.is_covered.all():
        missing = torch.from_numpy(~numbers.tokens.is_covered).to(values.device)[rows]
        values = values.masked_fill(missing, _nothing(largest=largest))
    return values


class BlockMaxima:
    """Ranks by the bests of blocks, on the host."""

    def __init__(self, product: Product, ks: Sequence[int], largest: bool) -> None:
        """Takes how many nodes each row wants."""
        self._product, self._ks, self._largest = product, ks, largest
        self._parts: dict[tuple[int, int], list[tuple[Numbers, Tensor, int]]] = {}

    def add(self, numbers: Numbers) -> None:
        """Looks at a part."""
        entries = numbers.values.flatten(1)
        bests, size = _bests_of_blocks(entries, max(self._ks), self._largest)
        rows = numbers.part.rows
        self._parts.setdefault((rows.start, rows.stop), []).append((numbers, bests, size))

    def tensors(self) -> list[Tensor]:
        """What it needs on the host: nothing that could not be read there."""
        return []

    def best(self, _: Sequence[Array]) -> list[BestNodes]:
        """The k best of each row."""
        return [
            one
            for (start, stop), parts in self._parts.items()
            for one in self._best_of_rows(parts, self._ks[start:stop])
        ]

    def _best_of_rows(self, parts: list[tuple[Numbers, Tensor, int]], ks: Sequence[int]) -> list[BestNodes]:
        sign = 1 if self._largest else -1
        rows, blocks, least = _chosen_blocks(torch.cat([bests for _, bests, _ in parts], dim=1) * sign, ks)
        found: list[tuple[Array, Array, Array]] = []
        start = 0
        for numbers, bests, size in parts:
            is_here = (blocks >= start) & (blocks < start + bests.shape[1])
            own_rows, own = rows[is_here], blocks[is_here] - start
            start += bests.shape[1]
            if not len(own):
                continue
            flat = (own[:, None] * size + np.arange(size)).reshape(-1)
            of_rows = own_rows.repeat(size)
            is_entry = flat < math.prod(numbers.values.shape[1:])
            found.append(self._entries(numbers, of_rows[is_entry], flat[is_entry]))
        n_rows = parts[0][0].values.shape[0]
        if not found:
            return [_no_nodes(self._product)] * n_rows
        joined = [np.concatenate([one[axis] for one in found]) for axis in range(3)]
        n_zeros = _n_zeros(self._product, [numbers for numbers, _, _ in parts])
        return [
            _best(joined[1][own], joined[2][own], ks[row], self._largest, n_zeros[row], least[row])
            for row in range(n_rows)
            for own in [joined[0] == row]
        ]

    def _entries(self, numbers: Numbers, rows: Array, flat: Array) -> tuple[Array, Array, Array]:
        """Rows [m], values [m] and nodes [m, ...] of entries, by row of the part and place behind it."""
        device = numbers.values.device
        on_device = torch.from_numpy(rows).to(device), torch.from_numpy(flat).to(device)
        wanted = [_again(self._product, numbers, *on_device, largest=self._largest)]
        if self._product.ids is not None:
            wanted.append(_ids_at(self._product, numbers, *on_device))
        values, *ids = download(wanted)
        return rows, values, _nodes(self._product, numbers, rows, flat, *ids)


class HostTop:
    """Ranks what has no layers: of equals, those that `topk` on a CPU finds first in the row alone.

    Every embedding's "activation" is 1: which of them are listed is decided by that.
    """

    def __init__(self, product: Product, ks: Sequence[int], lengths: Sequence[int], largest: bool) -> None:
        """Takes how many nodes each row wants, and how long its own token axis is."""
        self._product, self._ks, self._lengths, self._largest = product, ks, lengths, largest
        self._parts: list[Numbers] = []

    def add(self, numbers: Numbers) -> None:
        """Looks at a part."""
        self._parts.append(numbers)

    def tensors(self) -> list[Tensor]:
        """What it needs on the host."""
        return [one.values for one in self._parts]

    def best(self, arrays: Sequence[Array]) -> list[BestNodes]:
        """The k best of each row, from what it asked for."""
        found = []
        for row, (k, length) in enumerate(zip(self._ks, self._lengths, strict=True)):
            parts = [
                (numbers, values[row - numbers.part.rows.start])
                for numbers, values in zip(self._parts, arrays, strict=True)
                if numbers.part.rows.start <= row < numbers.part.rows.stop
                if numbers.tokens is None or numbers.tokens.is_covered[row - numbers.part.rows.start]
            ]
            if not parts:
                found.append(_no_nodes(self._product))
                continue
            axis = 1 + self._product.axes.index(self._product.token_dimension)
            joined = np.concatenate([values for _, values in parts], axis=axis)
            if parts[0][0].tokens is None:
                joined = joined.take(range(length), axis=axis)
            shape = joined.shape
            flat = torch.from_numpy(joined.reshape(1, -1))
            values, places = top_k_per_row(flat, min(k, flat.shape[1]), self._largest)
            numbers = Numbers(parts[0][0].part, torch.empty(1, *shape), parts[0][0].tokens)
            rows = np.full(values.shape[1], row - parts[0][0].part.rows.start)
            nodes = _nodes(self._product, numbers, rows, places[0].numpy())
            is_node = values[0].numpy() != 0
            found.append(BestNodes(nodes[is_node], np.flatnonzero(is_node)))
        return found


class PlainTop:
    """Ranks with `topk` on the device; what ties at the end is ranked again by `BlockMaxima`."""

    def __init__(self, product: Product, ks: Sequence[int], largest: bool) -> None:
        """Takes how many nodes each row wants."""
        self._product, self._ks, self._largest = product, ks, largest
        self._parts: list[tuple[Numbers, list[Tensor]]] = []

    def add(self, numbers: Numbers) -> None:
        """Looks at a part."""
        entries = numbers.values.flatten(1)
        k = min(max(self._ks) + 1, entries.shape[1])  # one more shows ties
        values, flat = entries.topk(k, dim=1, largest=self._largest)
        if self._product.has_ties:  # of what equals the last, those that come first
            places = torch.arange(entries.shape[1], device=entries.device)
            is_last = entries == values[:, -1:]
            firsts = torch.where(is_last, -places, -entries.shape[1]).topk(k, dim=1).values.neg_()
            values = torch.cat((values, values[:, -1:].expand(-1, k)), dim=1)
            flat = torch.cat((flat, firsts), dim=1)
        found = [values, flat]
        if self._product.ids is not None:
            found.append(_ids_at(self._product, numbers, None, flat))
        self._parts.append((numbers, found))

    def tensors(self) -> list[Tensor]:
        """What it needs on the host."""
        return [one for _, found in self._parts for one in found]

    def best(self, arrays: Sequence[Array]) -> list[BestNodes]:
        """The k best of each row, from what it asked for."""
        waiting = iter(arrays)
        by_row: dict[int, list[tuple[Array, Array]]] = {}
        by_rows: dict[tuple[int, int], list[Numbers]] = {}
        for numbers, tensors in self._parts:
            values, flat, *ids = (next(waiting) for _ in tensors)
            if self._is_unsure(values, numbers):
                return self._ranked_again()
            if self._product.has_ties:
                values, flat = _without_doubles(values, flat, math.prod(numbers.values.shape[1:]))
            for row in range(len(values)):
                rows = np.full(flat.shape[1], row)
                nodes = _nodes(self._product, numbers, rows, flat[row], *(one[row] for one in ids))
                by_row.setdefault(numbers.part.rows.start + row, []).append((values[row], nodes))
            by_rows.setdefault((numbers.part.rows.start, numbers.part.rows.stop), []).append(numbers)
        n_zeros = [one for _, own in sorted(by_rows.items()) for one in _n_zeros(self._product, own)]
        return [
            _best(
                np.concatenate([values for values, _ in found]),
                np.concatenate([nodes for _, nodes in found]),
                self._ks[row],
                self._largest,
                n_zeros[row],
            )
            for row, found in sorted(by_row.items())
        ]

    def _is_unsure(self, values: Array, numbers: Numbers) -> bool:
        """Whether what was found may leave out an equal, or something behind what is not a number."""
        if np.isnan(values).any():
            return True
        if self._product.has_ties or values.shape[1] == math.prod(numbers.values.shape[1:]):
            return False
        last = values[:, -1]
        ties = (last == values[:, -2]) & (last != 0) & (last != _nothing(largest=self._largest))
        return bool(ties.any())

    def _ranked_again(self) -> list[BestNodes]:
        ranked = BlockMaxima(self._product, self._ks, self._largest)
        for numbers, _ in self._parts:
            ranked.add(numbers)
        return ranked.best([])


TopNodes = BlockMaxima | PlainTop | HostTop


def _no_nodes(product: Product) -> BestNodes:
    return BestNodes(np.zeros((0, 1 + len(product.axes)), np.int64), np.zeros(0, np.int64))


def _without_doubles(values: Array, flat: Array, n_entries: int) -> tuple[Array, Array]:
    """What equals the last of the best, from the second list alone: NaN stands for what is no entry.

    Args:
        values: of the k best, and k times the last of them [b, 2 k].
        flat: where they are, and where the first of what equals the last is; `n_entries` for nowhere.
    """
    k = values.shape[1] // 2
    values = values.copy()
    values[:, :k][values[:, :k] == values[:, k - 1 : k]] = np.nan
    values[:, k:][flat[:, k:] == n_entries] = np.nan
    return values, flat.clip(max=n_entries - 1)


def _n_zeros(product: Product, parts: Sequence[Numbers]) -> list[int]:
    """How many zeros each row has beside the entries of its parts: its latents that stand nowhere in them."""
    first = parts[0]
    rows = first.part.rows
    if product.ids is None:
        return [0] * (rows.stop - rows.start)
    n_layers = len(product.layers) - min(numbers.part.first_layer for numbers in parts)
    n_side_by_side = first.values.shape[-1]
    if first.tokens is not None:
        return [n_layers * (product.n_latents - n_side_by_side)] * (rows.stop - rows.start)
    lengths = product.lengths[rows]
    n_covered = (
        lengths if product.tokens is None else [len(set(own)) for own in product.tokens[rows].tolist()]
    )
    return [
        n_layers * (length * product.n_latents - n_tokens * n_side_by_side)
        for length, n_tokens in zip(lengths, n_covered, strict=True)
    ]


def _best(
    values: Array, nodes: Array, k: int, largest: bool, n_zeros: int, least: float = -math.inf
) -> BestNodes:
    """The k best of some candidates of one row, in order; never a zero, nor what is not a number."""
    better = values if largest else -values
    is_there = ~np.isnan(values) & (better != -math.inf) & (better >= least)
    better, nodes = better[is_there], nodes[is_there]
    if n_zeros:
        better = np.concatenate([better, np.zeros(min(n_zeros, k), better.dtype)])
        nodes = np.concatenate([nodes, np.zeros((min(n_zeros, k), nodes.shape[1]), nodes.dtype)])
    if len(better) > k:
        is_good = better >= np.partition(better, -k)[-k]
        better, nodes = better[is_good], nodes[is_good]
    order = np.lexsort((*nodes.T[::-1], -better))[:k]
    is_node = better[order] != 0
    return BestNodes(nodes[order][is_node], np.flatnonzero(is_node))


def _nodes(product: Product, numbers: Numbers, rows: Array, flat: Array, ids: Array | None = None) -> Array:
    """The nodes of entries [m, 1 + n_axes]; rows are those of the part."""
    part = numbers.part
    of_group = rows + part.rows.start
    found = nodes_of(product, part.first_layer, part.first_token, numbers.values.shape[1:], of_group, flat)
    if numbers.tokens is not None:
        found[:, 1 + product.order.index(product.token_dimension)] = numbers.tokens.tokens[rows]
    if ids is not None:
        found[:, -1] = ids
    return found


def _ids_at(product: Product, numbers: Numbers, rows: Tensor | None, flat: Tensor) -> Tensor:
    """Which latents entries are, by row of the part and place behind it; without rows, places by row."""
    assert product.ids is not None
    part, shape = numbers.part, numbers.values.shape
    is_together = product.ids.together is not None and shape[1] > 1
    ids = product.ids.part(None if is_together else part.first_layer, part.rows)
    ids = ids[:, ids.shape[1] - shape[1] :]
    if numbers.tokens is None:
        by_row = ids.narrow(2, part.first_token, shape[2]).flatten(1)
        return by_row.gather(1, flat) if rows is None else by_row[rows, flat]
    if rows is None:
        rows = torch.arange(len(flat), device=flat.device)[:, None]
    width = shape[-1]
    layers, places = flat // width, flat % width
    return ids[rows, layers, part.first_token + numbers.tokens.places[rows], places]


def _bests_of_blocks(entries: Tensor, k: int, largest: bool) -> tuple[Tensor, int]:
    """The best entries of blocks of rows [b, n], of which k are wanted: [b, n_blocks], and a block's size."""
    n_entries = entries.shape[1]
    size = block_size(n_entries, k)
    if size == 1:
        return entries, size
    n_whole = n_entries // size * size
    parts = [entries[:, :n_whole].view(len(entries), -1, size)]
    if n_whole < n_entries:
        parts.append(entries[:, None, n_whole:])
    bests = [part.amax(dim=2) if largest else part.amin(dim=2) for part in parts]
    return bests[0] if len(bests) == 1 else torch.cat(bests, dim=1), size


def _chosen_blocks(bests: Tensor, ks: Sequence[int]) -> tuple[Array, Array, Array]:
    """Which blocks of [b, n] may have one of a row's k best entries.

    Returns:
        Rows and blocks [m], in order, and what each row's k best are at least [b]. Where that is zero,
        whatever is below does not count, and zeros are never chosen.
    """
    k = min(max(ks), bests.shape[1])
    numbers = bests.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    best = numbers.topk(k, dim=1).values.cpu()
    least = torch.tensor(
        [own[one - 1] if one <= k else -torch.inf for own, one in zip(best, ks, strict=True)],
        dtype=bests.dtype,
        device=bests.device,
    )[:, None]
    is_chosen = torch.where(least == 0, bests > 0, bests >= least)
    rows, blocks = is_chosen.nonzero().unbind(1)
    found: list[Array] = [rows.cpu().numpy(), blocks.cpu().numpy(), least[:, 0].double().cpu().numpy()]
    return found[0], found[1], found[2]

"""Derived scalars as products of factors over rows, layers and nodes.

Every derived scalar is a number per node that is a product: activation x gradient, activation x write norm.
A product's factors are tensors [B, L, ...] that broadcast against each other. What is small is one tensor
over all layers, so that an operation is begun once; what is large stays layer by layer as the passes left it,
and is gone through in parts that stay in a processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.node import Dimension
from tdb_server.engine.transfers import Array

MAX_TOGETHER = {"cpu": 2**20, "cuda": 2**25}
"""Numbers of one factor that are joined over layers, by type of device. In float32, 4 MiB and 128 MiB: a
CPU's cache, and what a GPU goes through in less time than it takes to begin a dozen operations."""
_TOKENS = Dimension.SEQUENCE_TOKENS


class Layers:
    """A tensor [B, ...] for each of some layers; all of them as one [B, L, ...] where that is small."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Takes one tensor per layer, or [1, ...] where all rows have the same."""
        self.tensors = tensors

    @classmethod
    def of(cls, together: Tensor) -> Layers:
        """Of one tensor [B, L, ...]."""
        found = cls(together.unbind(1))
        found.__dict__["together"] = together
        return found

    @cached_property
    def together(self) -> Tensor | None:
        """All layers [B, L, ...], or None where they are too large to be joined."""
        first = self.tensors[0]
        if len(self.tensors) == 1:
            return first[:, None]
        if len(self.tensors) * first.numel() > MAX_TOGETHER[first.device.type]:
            return None
        if any(one.shape != first.shape for one in self.tensors):
            return None
        return torch.stack(list(self.tensors), dim=1)

    def part(self, layer: int | None, rows: slice) -> Tensor:
        """[b, 1, ...] of one layer; [b, L, ...] of all of them."""
        found = self.together if layer is None else self.tensors[layer][:, None]
        assert found is not None
        return found if found.shape[0] == 1 else found[rows]

    def at(self, nodes: NodeCoordinates, *coordinates: Tensor) -> Tensor:
        """The numbers of nodes [m], or what stands behind the coordinates [m, ...]."""
        together = self.together
        if together is not None:
            rows = 0 if together.shape[0] == 1 else nodes.rows
            return together[(rows, nodes.layers, *_within(together, coordinates, 2))]
        found = []
        for layer, span in nodes.spans:
            x = self.tensors[layer]
            own = _within(x, [one[span] for one in coordinates], 1)
            rows = nodes.rows[span]  # a tensor even where all are the same: it says how many nodes there are
            found.append(x[(torch.zeros_like(rows) if x.shape[0] == 1 else rows, *own)])
        return torch.cat(found)


def _within(x: Tensor, coordinates: Sequence[Tensor], first_axis: int) -> list[Tensor | int]:
    """Coordinates along a tensor's axes; 0 where it is the same along one."""
    return [0 if x.shape[axis] == 1 else one for axis, one in enumerate(coordinates, start=first_axis)]


@dataclass(frozen=True)
class NodeCoordinates:
    """Where some nodes are, in the order of layers.

    Attributes:
        rows: of the group [m].
        layers: places among the product's layers [m].
        spans: by such a place, which of the nodes are there.
    """

    rows: Tensor
    layers: Tensor
    spans: Sequence[tuple[int, slice]]


@dataclass(frozen=True)
class Product:
    """A derived scalar of all nodes of a group of rows.

    Attributes:
        factors: whose product it is.
        layers: which layers they are of; None alone for what has no layers.
        axes: what the axes behind rows and layers run over, as laid out here.
        order: the same axes in the order of a node's indices.
        n_rows: rows of the group.
        tokens: where given, the tokens that the token axis covers [B, n], on the host; elsewhere it is zero.
        device_tokens: the same on the device.
        n_tokens: of the longest row.
        lengths: tokens of each row.
        ids: for latents, which ones stand along the last axis [B, L, T, K].
        n_latents: how many there are.
        not_nodes: True where an entry is not a node (a masked attention cell) [q, k].
        absent: True where there is nothing to rank, neither a number nor a zero: padding, and layers that the
            objective cannot see [B, L, ...]. The numbers there are zero.
        has_ties: whether many numbers are known to be equal, and best.
        known_sum: the sum over all but the tokens [B, T], where it is not that of `factors`.
    """

    factors: tuple[Layers, ...]
    layers: tuple[int | None, ...]
    axes: tuple[Dimension, ...]
    order: tuple[Dimension, ...]
    n_rows: int
    n_tokens: int
    lengths: tuple[int, ...]
    tokens: Array | None = None
    device_tokens: Tensor | None = None
    ids: Layers | None = None
    n_latents: int = 0
    not_nodes: Tensor | None = None
    absent: Tensor | None = None
    known_sum: Tensor | None = None
    has_ties: bool = False

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.factors[0].tensors[0].device

    @property
    def token_dimension(self) -> Dimension:
        """What nodes at one token are picked by."""
        return _TOKENS

    def parts(self) -> Iterator[Part]:
        """All numbers: of all layers at once where they are small, else layer by layer, in bounded parts."""
        everything = slice(0, self.n_rows)
        if all(one.together is not None for one in self.factors):
            factors = tuple(one.part(None, everything) for one in self.factors)
            yield from self._cut(Part(factors, 0, everything, 0))
            return
        for layer in range(len(self.layers)):
            factors = tuple(one.part(layer, everything) for one in self.factors)
            yield from self._cut(Part(factors, layer, everything, 0))

    def _cut(self, part: Part) -> Iterator[Part]:
        """A part in parts of a few rows, or of a few tokens of one row, where a CPU's cache asks for it."""
        limit, n_entries = MAX_TOGETHER["cpu"], math.prod(part.shape)
        if part.factors[0].device.type != "cpu" or n_entries <= limit:
            yield part
            return
        n_rows = max(1, limit // (n_entries // self.n_rows))
        axis = self.axes.index(_TOKENS) + 2 if _TOKENS in self.axes else None
        for start in range(0, self.n_rows, n_rows):
            rows = slice(start, min(start + n_rows, self.n_rows))
            of_rows = replace(
                part, factors=tuple(one if len(one) == 1 else one[rows] for one in part.factors), rows=rows
            )
            if axis is None or math.prod(of_rows.shape) <= limit:
                yield of_rows
                continue
            n_tokens = of_rows.shape[axis]
            step = max(1, n_tokens * limit // math.prod(of_rows.shape))
            for first in range(0, n_tokens, step):
                yield of_rows.narrowed(axis, first, min(step, n_tokens - first))

    def ranked(self, numbers: Tensor, part: Part, *, largest: bool) -> Tensor:
        """A part's numbers as they are ranked: zero where there are no nodes, last where there is nothing."""
        if self.not_nodes is not None:
            tokens = slice(part.first_token, part.first_token + numbers.shape[-2])
            numbers = numbers.masked_fill(self.not_nodes[tokens], 0)
        if self.absent is not None:
            absent = self.absent[part.rows]
            if absent.shape[1] > 1:
                absent = absent[:, part.first_layer : part.first_layer + numbers.shape[1]]
            if _TOKENS in self.axes:
                axis = 2 + self.axes.index(_TOKENS)
                if absent.shape[axis] > 1:
                    absent = absent.narrow(axis, part.first_token, numbers.shape[axis])
            numbers = numbers.masked_fill(absent, -torch.inf if largest else torch.inf)
        return numbers

    def add_sum(
        self, keep: tuple[Dimension, ...], part: Part, numbers: Tensor, total: Tensor | None
    ) -> Tensor:
        """Adds a part's sum to the total, or begins one."""
        if self.ids is not None and Dimension.AUTOENCODER_LATENTS in keep:
            return self._add_latents(keep, part, numbers, total)
        reduced = [1, *(axis + 2 for axis, one in enumerate(self.axes) if one not in keep)]
        found = numbers.sum(dim=reduced)
        left = [one for one in self.axes if one in keep]
        order = [left.index(one) for one in keep]
        if order != sorted(order):
            found = found.permute(0, *(1 + one for one in order))
        axis = 1 + keep.index(_TOKENS) if _TOKENS in keep else None
        is_whole = part.rows == slice(0, self.n_rows) and (
            axis is None or (self.device_tokens is None and found.shape[axis] == self.n_tokens)
        )
        if is_whole:
            return found if total is None else total.add_(found)
        if total is None:
            shape = list(found.shape)
            shape[0] = self.n_rows
            if axis is not None:
                shape[axis] = self.n_tokens
            total = found.new_zeros(shape)
        own = total[part.rows]
        if axis is None:
            own.add_(found)
        elif self.device_tokens is None:
            own.narrow(axis, part.first_token, found.shape[axis]).add_(found)
        else:
            width = found.shape[axis]
            tokens = self.device_tokens[part.rows, part.first_token : part.first_token + width]
            index = tokens.view(len(tokens), *(width if one == axis else 1 for one in range(1, found.dim())))
            own.scatter_add_(axis, index.expand_as(found), found)
        return total

    def _add_latents(
        self, keep: tuple[Dimension, ...], part: Part, numbers: Tensor, total: Tensor | None
    ) -> Tensor:
        """Sums that keep the latents apart."""
        assert self.ids is not None
        is_together = self.ids.together is not None and numbers.shape[1] > 1
        ids = self.ids.part(None if is_together else part.first_layer, part.rows)
        first, n_tokens = part.first_token, numbers.shape[2]
        ids = ids[:, -numbers.shape[1] :].narrow(2, first, n_tokens)
        index = [torch.arange(len(numbers), device=ids.device).view(-1, 1, 1, 1)]
        shape = [self.n_rows, self.n_latents]
        if _TOKENS in keep:
            tokens = torch.arange(first, first + n_tokens, device=ids.device)[None]
            if self.device_tokens is not None:
                tokens = self.device_tokens[part.rows, first : first + n_tokens]
            index.append(tokens[:, None, :, None])
            shape.insert(1, self.n_tokens)
        total = numbers.new_zeros(shape) if total is None else total
        total[part.rows].index_put_((*index, ids), numbers, accumulate=True)
        return total

    def placed(
        self, nodes: NodeCoordinates, coordinates: dict[Dimension, Tensor]
    ) -> tuple[list[Tensor], Tensor | None]:
        """Where nodes are along each axis, and which are there at all: of latents, active ones."""
        found = [coordinates[one] for one in self.axes]
        if self.ids is None:
            return found, None
        is_it = self.ids.at(nodes, *found[:-1]) == found[-1][:, None]  # [m, K]
        is_there, place = is_it.max(dim=1)
        return [*found[:-1], place], is_there

    def at(self, nodes: NodeCoordinates, coordinates: dict[Dimension, Tensor]) -> Tensor:
        """The numbers of some nodes [m]; their coordinates are by axis."""
        placed, is_there = self.placed(nodes, coordinates)
        numbers = reduce(torch.mul, [one.at(nodes, *placed) for one in self.factors])
        return numbers if is_there is None else numbers * is_there


@dataclass(frozen=True)
class Part:
    """Some numbers of a product.

    Attributes:
        factors: [b, l, ...], which broadcast against each other.
        first_layer: the place of its first layer among the product's.
        rows: of the group.
        first_token: of the product's token axis.
    """

    factors: tuple[Tensor, ...]
    first_layer: int
    rows: slice
    first_token: int

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        sizes = zip(*(one.shape for one in self.factors), strict=True)
        return tuple(0 if 0 in of_axis else max(of_axis) for of_axis in sizes)

    def numbers(self) -> Tensor:
        """The product [b, l, ...]."""
        return reduce(torch.mul, self.factors)

    def behind(self, layer: int) -> Part:
        """What it has of a layer's place and those behind it."""
        skipped = max(0, layer - self.first_layer)
        factors = tuple(
            one if one.shape[1] == 1 < self.shape[1] else one[:, skipped:] for one in self.factors
        )
        return Part(factors, self.first_layer + skipped, self.rows, self.first_token)

    def narrowed(self, axis: int, start: int, length: int) -> Part:
        """Some of the entries along the token axis."""
        factors = [one if one.shape[axis] == 1 else one.narrow(axis, start, length) for one in self.factors]
        return Part(tuple(factors), self.first_layer, self.rows, self.first_token + start)

    def at(self, index: tuple[Tensor, ...]) -> Tensor:
        """Some entries, by their coordinates in `shape`."""
        return reduce(torch.mul, [one.expand(self.shape)[index] for one in self.factors])


def nodes_of(
    product: Product, first_layer: int, first_token: int, shape: Sequence[int], rows: Array, flat: Array
) -> Array:
    """Where entries of a part are: layer and indices in node order [m, 1 + n_axes], on the host.

    Args:
        shape: of the part's numbers behind the rows.
        rows: of the group [m].
        flat: where the entries stand behind the row axis [m].
    """
    layer, *within = np.unravel_index(flat, tuple(shape))
    by_axis: dict[Dimension, Array] = dict(zip(product.axes, within, strict=True))
    if _TOKENS in by_axis:
        tokens = by_axis[_TOKENS] + first_token
        by_axis[_TOKENS] = tokens if product.tokens is None else product.tokens[rows, tokens]
    layers = np.array([-1 if one is None else one for one in product.layers])
    return np.stack([layers[layer + first_layer], *(by_axis[one] for one in product.order)], axis=1)

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
_TOKENS, _ATTENDED = Dimension.SEQUENCE_TOKENS, Dimension.ATTENDED_TO_SEQUENCE_TOKENS
_ALL = slice(None)


class Layers:
    """A tensor [B, ...] for each of some layers; all of them as one [B, L, ...] where that is small."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Takes one tensor per layer, or [1, ...] where all rows have the same."""
        self.tensors = tensors

    @classmethod
    def of(cls, together: Tensor) -> Layers:
        """Of one tensor [B, L, ...]."""
        found = cls(together.unbind(1))
        found.together = together
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


def spans_of(layers: Array) -> list[tuple[int, slice]]:
    """By layer, which of some nodes in the order of layers are there."""
    found, counts = np.unique(layers, return_counts=True)
    stops = counts.cumsum()
    starts = stops - counts
    return list(zip(found.tolist(), map(slice, starts.tolist(), stops.tolist()), strict=True))


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
        device_tokens: the same on the device, to add up sums; not in what `at_tokens` gives.
        n_tokens: of the longest row.
        lengths: tokens of each row.
        ids: for latents, which ones stand along the last axis [B, L, T, K].
        n_latents: how many there are.
        not_nodes: True where an entry is not a node (a masked attention cell) [B, L, ...].
        absent: True where there is nothing to rank, neither a number nor a zero: padding, and layers that the
            objective cannot see [B, L, ...]. The numbers there are zero.
        n_ties: how many numbers of each layer are known to be equal, and best.
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
    n_ties: int = 0

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.factors[0].tensors[0].device

    @cached_property
    def token_axis(self) -> int | None:
        """Where the tokens are in [B, L, ...]."""
        return 2 + self.axes.index(_TOKENS) if _TOKENS in self.axes else None

    def parts(self) -> Iterator[Part]:
        """All numbers: of all layers at once where they are small, else layer by layer, in bounded parts.

        On a CPU in parts of a few rows, or of a few tokens of one row, that stay in its cache.
        """
        limit, is_on_cpu = MAX_TOGETHER["cpu"], self.device.type == "cpu"
        is_together = all(one.together is not None for one in self.factors)
        for layer in [None] if is_together else range(len(self.layers)):
            whole = Part(layer, slice(0, self.n_rows), _ALL)
            shape = self.shape(whole)
            n_entries = math.prod(shape[1:])
            if not is_on_cpu or self.n_rows * n_entries <= limit:
                yield whole
                continue
            n_rows, n_tokens, step = max(1, limit // n_entries), 1, 1
            if self.token_axis is not None:
                n_tokens = shape[self.token_axis]
                step = min(n_tokens, max(1, n_tokens * limit // (min(n_rows, self.n_rows) * n_entries)))
            for start in range(0, self.n_rows, n_rows):
                rows = slice(start, min(start + n_rows, self.n_rows))
                for first in range(0, n_tokens, step):
                    tokens = _ALL if step == n_tokens else slice(first, min(first + step, n_tokens))
                    yield Part(layer, rows, tokens)

    def shape(self, part: Part) -> tuple[int, ...]:
        """Of a part's numbers."""
        shapes = (self.cut(one, part).shape for one in self.factors)
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    def cut(self, x: Layers | Tensor, part: Part) -> Tensor:
        """What a part has of a factor, or of a mask [B, L, ...]; one row, layer or token stands for all."""
        if isinstance(x, Layers):
            found = x.together if part.layer is None else x.tensors[part.layer][:, None]
            assert found is not None
        else:
            found = x if part.layer is None or x.shape[1] == 1 else x[:, part.layer : part.layer + 1]
        if len(found) > 1:
            found = found[part.rows]
        if part.tokens != _ALL and self.token_axis is not None and found.shape[self.token_axis] > 1:
            found = found[(_ALL,) * self.token_axis + (part.tokens,)]
        return found

    def numbers(self, part: Part) -> Tensor:
        """The product [b, l, ...]."""
        return reduce(torch.mul, [self.cut(one, part) for one in self.factors])

    def at_tokens(self, tokens: Array) -> Product:
        """The same of one token of each row alone [B], for ranking only; where it is not covered, nothing.

        Keys and values are of the token that is attended to.
        """
        if self.token_axis is None:
            return self._at_attended(tokens)
        if self.tokens is not None and np.array_equal(self.tokens, tokens[:, None]):
            return self
        is_it = tokens[:, None] == (np.arange(self.n_tokens) if self.tokens is None else self.tokens)
        places = torch.from_numpy(is_it.argmax(axis=1)).to(self.device)
        rows = torch.arange(self.n_rows, device=self.device)

        def pick(x: Tensor, axis: int) -> Tensor:
            if x.shape[axis] == 1:
                return x
            return x.expand(self.n_rows, *x.shape[1:]).movedim(axis, 1)[rows, places].unsqueeze(axis)

        def pick_layers(x: Layers) -> Layers:
            if x.together is not None:
                return Layers.of(pick(x.together, axis))
            return Layers([pick(one, axis - 1) for one in x.tensors])

        axis = self.token_axis
        absent = None if self.absent is None else pick(self.absent, axis)
        if not is_it.any(axis=1).all():
            is_missing = torch.from_numpy(~is_it.any(axis=1)).to(self.device)
            is_missing = is_missing.view(-1, *[1] * (1 + len(self.axes)))
            absent = is_missing if absent is None else absent | is_missing
        return replace(
            self,
            factors=tuple(pick_layers(one) for one in self.factors),
            lengths=(1,) * self.n_rows,
            tokens=tokens[:, None],
            device_tokens=None,
            known_sum=None,
            ids=None if self.ids is None else pick_layers(self.ids),
            not_nodes=None if self.not_nodes is None else pick(self.not_nodes, axis),
            absent=absent,
        )

    def _at_attended(self, tokens: Array) -> Product:
        if _ATTENDED not in self.axes:
            return self
        is_other = torch.from_numpy(tokens[:, None] != np.arange(self.n_tokens)).to(self.device)
        is_other = is_other.view(len(tokens), 1, *(-1 if one is _ATTENDED else 1 for one in self.axes))
        return replace(self, absent=is_other if self.absent is None else self.absent | is_other)

    def add_sum(
        self, keep: tuple[Dimension, ...], part: Part, numbers: Tensor, total: Tensor | None
    ) -> Tensor:
        """Adds a part's sum to the total, or begins one."""
        assert (self.tokens is None) == (self.device_tokens is None)
        if self.ids is not None and Dimension.AUTOENCODER_LATENTS in keep:
            return self._add_latents(keep, part, numbers, total)
        reduced = [1, *(axis + 2 for axis, one in enumerate(self.axes) if one not in keep)]
        part_sum = self._in_order(keep, numbers.sum(dim=reduced), 1)
        axis = 1 + keep.index(_TOKENS) if _TOKENS in keep else None
        is_of_all = axis is None or (self.device_tokens is None and part.tokens == _ALL)
        if is_of_all and part.rows == slice(0, self.n_rows):
            return part_sum if total is None else total.add_(part_sum)
        if total is None:
            shape = [self.n_rows, *part_sum.shape[1:]]
            if axis is not None:
                shape[axis] = self.n_tokens
            total = part_sum.new_zeros(shape)
        total_of_rows = total[part.rows]
        if axis is None or self.device_tokens is None:
            total_of_rows[() if axis is None else (_ALL,) * axis + (part.tokens,)].add_(part_sum)
        else:
            tokens = self.device_tokens[part.rows, part.tokens]
            index = tokens.view(len(tokens), *[1] * (axis - 1), -1, *[1] * (part_sum.dim() - 1 - axis))
            total_of_rows.scatter_add_(axis, index.expand_as(part_sum), part_sum)
        return total

    def add_total(
        self, keep: tuple[Dimension, ...], part: Part, numbers: Tensor, total: Tensor | None
    ) -> Tensor:
        """Adds a part's sum by layer, and by token and head if `keep` says so, to the total [B, L, ...]."""
        assert (self.tokens is None) == (self.device_tokens is None)
        reduced = [2 + axis for axis, one in enumerate(self.axes) if one not in keep]
        summed = numbers.sum(dim=reduced) if reduced else numbers  # without dimensions torch sums over all
        part_sum = self._in_order(keep, summed, 2)
        has_tokens = _TOKENS in keep  # they are the first axis of all that has them
        if total is None:
            left = [self.n_tokens, *part_sum.shape[3:]] if has_tokens else part_sum.shape[2:]
            total = part_sum.new_zeros(self.n_rows, len(self.layers), *left)
        layers = _ALL if part.layer is None else slice(part.layer, part.layer + 1)
        total_of_rows = total[part.rows, layers]
        if not has_tokens:
            total_of_rows += part_sum
        elif self.device_tokens is None:
            total_of_rows[:, :, part.tokens] += part_sum
        else:
            tokens = self.device_tokens[part.rows, part.tokens]
            index = tokens.view(len(tokens), 1, -1, *[1] * (part_sum.dim() - 3))
            total_of_rows.scatter_add_(2, index.expand_as(part_sum), part_sum)
        return total

    def _in_order(self, keep: tuple[Dimension, ...], found: Tensor, n_before: int) -> Tensor:
        """A sum with the axes that were kept, behind `n_before` others, in the order of nodes."""
        left = [one for one in self.axes if one in keep]
        order = [left.index(one) for one in keep]
        return (
            found
            if order == sorted(order)
            else found.movedim(
                [n_before + one for one in order], [n_before + place for place in range(len(order))]
            )
        )

    def _add_latents(
        self, keep: tuple[Dimension, ...], part: Part, numbers: Tensor, total: Tensor | None
    ) -> Tensor:
        """Sums that keep the latents apart."""
        assert self.ids is not None
        ids = self.cut(self.ids, part)
        index = [torch.arange(len(numbers), device=ids.device).view(-1, 1, 1, 1)]
        shape = [self.n_rows, self.n_latents]
        if _TOKENS in keep:
            tokens = torch.arange(self.n_tokens, device=ids.device)[None, part.tokens]
            if self.device_tokens is not None:
                tokens = self.device_tokens[part.rows, part.tokens]
            index.append(tokens[:, None, :, None])
            shape.insert(1, self.n_tokens)
        total = numbers.new_zeros(shape) if total is None else total
        total[part.rows].index_put_((*index, ids), numbers, accumulate=True)
        return total

    def covered(self, rows: Array, indices: Array) -> tuple[Array, Array]:
        """Which nodes are at tokens that the token axis has [m]; indices [m, n_axes] with places there."""
        if self.tokens is None:
            return np.ones(len(rows), dtype=bool), indices
        axis = self.order.index(_TOKENS)
        is_it, indices = self.tokens[rows] == indices[:, axis, None], indices.copy()
        indices[:, axis] = is_it.argmax(axis=1)
        return is_it.any(axis=1), indices

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

    def nodes(self, part: Part, rows: Array, flat: Array) -> Array:
        """Which nodes some entries of a part are: layer, -1 for none, and indices [m, 1 + n_axes].

        Of latents the last index is a place side by side, not yet an id.

        Args:
            rows: of the group [m].
            flat: where the entries stand behind the row axis of the part [m].
        """
        layer, *within = np.unravel_index(flat, self.shape(part)[1:])
        by_axis: dict[Dimension, Array] = dict(zip(self.axes, within, strict=True))
        if _TOKENS in by_axis:
            tokens = by_axis[_TOKENS] + (part.tokens.start or 0)
            by_axis[_TOKENS] = tokens if self.tokens is None else self.tokens[rows, tokens]
        layers = np.array([-1 if one is None else one for one in self.layers])
        return np.stack([layers[layer + (part.layer or 0)], *(by_axis[one] for one in self.order)], axis=1)


@dataclass(frozen=True)
class Part:
    """Which numbers of a product: of one layer's place, or of all layers, and of some rows and tokens."""

    layer: int | None
    rows: slice
    tokens: slice

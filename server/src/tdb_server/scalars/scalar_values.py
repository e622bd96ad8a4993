"""Numbers per node of a layer, dense or sparse: ranked, looked up and summed.

A dense scalar is kept as a product of factors that broadcast against each other (activation × gradient,
activation × write norm, ...): a few nodes can then be looked up without computing all of them again.
Several layers may stand in one, along a first axis of layers (see `layer_stacks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.node import Dimension
from tdb_server.domain.results import FloatArray, IntArray
from tdb_server.scalars.best_entries import top_k_entries
from tdb_server.scalars.entry_blocks import EntryBlocks, bests_of_blocks
from tdb_server.scalars.host_arrays import as_indices
from tdb_server.scalars.latents import SparseLatents


class StackAxis(Enum):
    """The axis along which layers are stacked."""

    LAYERS = "layers"


Axis = Dimension | StackAxis
_TOKENS = Dimension.SEQUENCE_TOKENS
_LATENT_AXES = (_TOKENS, Dimension.AUTOENCODER_LATENTS)


@dataclass
class DenseScalars:
    """A number for every entry of a layer.

    Attributes:
        factors: tensors whose broadcast product is the scalar.
        axes: what the product's axes run over, as laid out here.
        order: the same axes in the order of a node's indices.
        tokens: where given, the tokens the token axis covers; every other token's number is zero.
        not_nodes: True where an entry is not a node (a masked attention cell) [.., q, k].
        known_sum: the sum over all but the tokens [T], where it is not that of `factors`.
    """

    factors: Sequence[Tensor]
    axes: tuple[Axis, ...]
    order: tuple[Axis, ...]
    n_tokens: int
    tokens: Tensor | None = None
    not_nodes: Tensor | None = None
    known_sum: Tensor | None = None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product."""
        sizes = zip(*(factor.shape for factor in self.factors), strict=True)
        return tuple(0 if 0 in of_axis else max(of_axis) for of_axis in sizes)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.factors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers."""
        return reduce(torch.promote_types, [factor.dtype for factor in self.factors])

    @property
    def n_entries(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @cached_property
    def product(self) -> Tensor:
        """The numbers themselves."""
        return reduce(torch.mul, self.factors)

    def write_product(self, into: Tensor) -> None:
        """Writes the numbers into a tensor of their shape."""
        *others, last = self.factors
        torch.mul(reduce(torch.mul, others), last, out=into) if others else into.copy_(last)

    def release(self) -> None:
        """Lets go of the product; it is computed again if it is asked for again."""
        self.__dict__.pop("product", None)

    def top(self, k: int, largest: bool, token_index: int | None) -> tuple[FloatArray, IntArray]:
        """The best k, best first: values [m], node indices [m, n_axes]. Zeros may be among them."""
        ranked, first = self._ranked(token_index)
        if ranked.numel() == 0:
            return np.zeros(0, np.float32), np.zeros((0, len(self.axes)), np.int64)
        found, flat = top_k_entries(ranked, k, largest)
        return found, self._nodes(flat, ranked.shape, first)

    def blocks(self, k: int, largest: bool, token_index: int | None) -> EntryBlocks:
        """All entries in blocks, so that the k best of several layers can be found."""
        ranked, first = self._ranked(token_index)
        shape, n_entries = ranked.shape, ranked.numel()
        bests, block = bests_of_blocks(ranked.reshape(-1), k, largest)

        def entries(blocks: IntArray) -> tuple[Tensor, IntArray]:
            flat = (blocks[:, None] * block + np.arange(block)).reshape(-1)
            flat = flat[flat < n_entries]
            index = self._index(flat, shape, first)
            values = self._product_at(index)
            if self.not_nodes is not None:
                values = values.masked_fill(self.not_nodes.expand(self.shape)[index], 0)
            return values, flat

        return EntryBlocks(bests, entries, lambda flat: self._nodes(flat, shape, first))

    def _ranked(self, token_index: int | None) -> tuple[Tensor, int]:
        """What is ranked, at one token or at all, and the first place on the token axis that is."""
        values = self.product if self.not_nodes is None else self.product.masked_fill(self.not_nodes, 0)
        if token_index is None or self.token_axis is None:
            return values, 0
        covered = self._covered_tokens
        place = int(covered.searchsorted(token_index))
        is_covered = place < len(covered) and covered[place] == token_index
        return values.narrow(self.token_axis, place, int(is_covered)), place

    def _index(self, flat: IntArray, shape: torch.Size, first: int) -> tuple[Tensor, ...]:
        """Where entries of what is ranked stand in the product, axis by axis."""
        places = np.stack(np.unravel_index(flat, shape))  # small steps cost least on the host
        if first and self.token_axis is not None:
            places[self.token_axis] += first
        return torch.from_numpy(places).to(self.device).unbind()

    def _nodes(self, flat: IntArray, shape: torch.Size, first: int) -> IntArray:
        """Node indices [m, n_axes] of entries of what is ranked."""
        by_axis: dict[Axis, IntArray] = dict(zip(self.axes, np.unravel_index(flat, shape), strict=True))
        if _TOKENS in by_axis:
            by_axis[_TOKENS] = self._covered_tokens[by_axis[_TOKENS] + first]
        return np.stack([by_axis[one] for one in self.order], axis=1)

    def _product_at(self, index: tuple[Tensor, ...]) -> Tensor:
        """Some entries of the product."""
        return reduce(torch.mul, [factor.expand(self.shape)[index] for factor in self.factors])

    def at(self, nodes: Tensor) -> Tensor:
        """The numbers of some nodes: indices [m, n_axes] to [m]."""
        coordinates = [nodes[:, self.order.index(one)] for one in self.axes]
        outside = None
        if self.tokens is not None and self.token_axis is not None:
            position = self._position(coordinates[self.token_axis])
            outside = position < 0
            if len(self.tokens) == 0:
                return nodes.new_zeros(len(nodes), dtype=self.factors[0].dtype)
            coordinates[self.token_axis] = position.clamp(min=0)
        result = self._product_at(tuple(coordinates))
        return result if outside is None else result.masked_fill(outside, 0)

    def add_sum(self, keep: Sequence[Dimension], total: Tensor | None = None) -> Tensor:
        """Adds the sum over all axes but those of `keep`, in node order, to a total, or begins one."""
        kept = [one for one in self.order if one in keep]
        if self.known_sum is not None and kept == [_TOKENS]:
            return _added(self.known_sum, total)
        reduced = [axis for axis, one in enumerate(self.axes) if one not in kept]
        found = self.product.sum(dim=reduced) if reduced else self.product
        if kept:
            left = [one for one in self.axes if one in kept]
            found = found.permute([left.index(one) for one in kept])
        if self.tokens is None or _TOKENS not in kept:
            return _added(found, total)
        axis = kept.index(_TOKENS)
        if total is None:
            total = found.new_zeros([*found.shape[:axis], self.n_tokens, *found.shape[axis + 1 :]])
        if self._are_neighbours:
            total.narrow(axis, int(self._covered_tokens[0]), len(self.tokens)).add_(found)
            return total
        return total.index_add_(axis, self.tokens, found)

    @property
    def token_axis(self) -> int | None:
        """Which axis the tokens run along, if any."""
        return self.axes.index(_TOKENS) if _TOKENS in self.axes else None

    @cached_property
    def _covered_tokens(self) -> IntArray:
        """The tokens the token axis covers, in order."""
        return np.arange(self.n_tokens) if self.tokens is None else as_indices(self.tokens)

    @cached_property
    def _are_neighbours(self) -> bool:
        """Whether the covered tokens are known to follow each other; a GPU is not waited for to know."""
        if self.tokens is None or self.tokens.is_cuda or len(self.tokens) == 0:
            return False
        covered = self._covered_tokens
        return bool(covered[-1] - covered[0] + 1 == len(covered))

    def _position(self, tokens: Tensor) -> Tensor:
        """Where tokens stand on the token axis, -1 for those it does not cover."""
        if self.tokens is None:
            return tokens
        positions = torch.full((self.n_tokens,), -1, device=tokens.device)
        positions[self.tokens] = torch.arange(len(self.tokens), device=tokens.device)
        return positions[tokens]


def _flat(coordinates: Tensor, shape: Sequence[int]) -> Tensor:
    """Coordinates [m, n_axes] in a tensor of some shape to flat indices [m]."""
    flat = torch.zeros_like(coordinates[:, 0])
    for axis, size in enumerate(shape):
        flat = flat * size + coordinates[:, axis]
    return flat


@dataclass
class SparseScalars:
    """A number for every active latent of a layer or a stack of them; every other latent's number is zero."""

    active: SparseLatents
    values: Tensor

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return self.values.device

    @property
    def n_entries(self) -> int:
        """How many numbers are held."""
        return len(self.values)

    def release(self) -> None:
        """Nothing to let go of: only active latents are held."""

    def blocks(self, k: int, largest: bool, token_index: int | None) -> EntryBlocks:
        """Each active latent as a block of its own, and up to k zeros for those that are not active."""
        values, coordinates = self.values, self.active.coordinates
        n_latents = math.prod(self.active.shape)
        if token_index is not None:
            at_token = (self.active.tokens == token_index).nonzero()[:, 0]
            values, coordinates = values[at_token], coordinates[at_token]
            n_latents //= self.active.shape[-2]
        n_zeros = min(k, n_latents - len(values))

        def entries(blocks: IntArray) -> tuple[Tensor, IntArray]:
            flat = blocks[blocks < len(values)]
            return values[torch.from_numpy(flat).to(values.device)], flat

        def nodes(flat: IntArray) -> IntArray:
            return as_indices(coordinates[torch.from_numpy(flat).to(values.device)])

        return EntryBlocks(torch.cat((values, values.new_zeros(n_zeros))), entries, nodes)

    def at(self, nodes: Tensor) -> Tensor:
        """The numbers of some nodes: indices [m, n_axes] to [m]."""
        if len(self.values) == 0:
            return self.values.new_zeros(len(nodes))
        keys, wanted = (_flat(one, self.active.shape) for one in (self.active.coordinates, nodes))
        position = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return self.values[position].masked_fill(keys[position] != wanted, 0)

    def add_sum(self, keep: Sequence[Dimension], total: Tensor | None = None) -> Tensor:
        """Adds the sum over all axes but those of `keep` to a total, or begins one."""
        axes = [axis for axis, one in enumerate(_LATENT_AXES, start=-len(_LATENT_AXES)) if one in keep]
        if not axes:
            return _added(self.values.sum(), total)
        indices = tuple(self.active.coordinates[:, axis] for axis in axes)
        if total is None:
            total = self.values.new_zeros([self.active.shape[axis] for axis in axes])
        return total.index_put_(indices, self.values, accumulate=True)


def _added(found: Tensor, total: Tensor | None) -> Tensor:
    """A total with something added to it; one that begins is a tensor of its own."""
    return found.clone() if total is None else total.add_(found)


ScalarValues = DenseScalars | SparseScalars

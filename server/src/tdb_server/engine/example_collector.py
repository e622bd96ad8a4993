"""Goes through pieces of texts, and keeps what examples are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tdb_server.engine.counted_cells import CountedCells, counted_cells
from tdb_server.engine.engine import Engine
from tdb_server.engine.measured_nodes import MeasuredNodes
from tdb_server.engine.strongest_examples import StrongestExamples
from tdb_server.errors import ModelError
from tdb_server.examples.histogram import (
    N_BINS,
    N_UPPER_BITS,
    NOT_FINITE,
    UPPER_BITS,
    ZERO,
    cells_by_upper_bits,
)
from tdb_server.examples.kinds import Amounts, Kind
from tdb_server.examples.layer_examples import KindExamples, LayerExamples, NodeExamples

_MAX_WIDEST = 2**24
"""Numbers of the widest tensor of a batch, if one piece has no more."""
_MAX_ROWS = {"cpu": 32}
_MAX_ROWS_ELSEWHERE = 256
_COPIES = 6
"""Tensors of a batch, as wide as the widest, that are there at one time."""


@dataclass(frozen=True, slots=True)
class _OfLayer:
    """What is kept of one layer's nodes: examples, and counts of activations by bin [n, bins]."""

    top: StrongestExamples
    lowest: StrongestExamples | None
    counts: Tensor

    def tensors(self) -> Iterator[Tensor]:
        yield from self.top.tensors()
        if self.lowest is not None:
            yield from self.lowest.tensors()
        yield self.counts


class ExampleCollector:
    """Examples of a model's nodes, from all pieces that were run.

    The first token of a piece does not count, neither as a peak nor in histograms: it sees nothing but
    itself, and models use it as a place to look at when there is nothing to see.
    """

    def __init__(self, engine: Engine, kinds: Sequence[Kind], amounts: Amounts) -> None:
        self._kinds, self._amounts, self._device = tuple(kinds), amounts, engine.model.decoder.device
        self._measured = MeasuredNodes(engine.model, engine.precomputed, kinds)
        self._cells_by_bits = torch.from_numpy(cells_by_upper_bits()).to(self._device)
        self._kept = {(kind, layer): self._empty(kind) for kind in kinds for layer in kind.layers}

    def _empty(self, kind: Kind) -> _OfLayer:
        amounts, n_cells = self._amounts, kind.n_cells(self._amounts.context)

        def strongest(k: int, *, is_lowest: bool) -> StrongestExamples:
            return StrongestExamples(kind.n_nodes, k, n_cells, self._device, kind.floor, is_lowest=is_lowest)

        has_lowest = kind.has_lowest and amounts.n_lowest > 0
        return _OfLayer(
            strongest(amounts.k, is_lowest=False),
            strongest(amounts.n_lowest, is_lowest=True) if has_lowest else None,
            torch.zeros((kind.n_nodes, N_BINS + 1), dtype=torch.int64, device=self._device),
        )

    def kept(self) -> Iterator[npt.NDArray[Any]]:
        """All that is kept, to be saved."""
        for one in self._kept.values():
            yield from map(_array, one.tensors())

    def restore(self, saved: Iterator[npt.NDArray[Any]]) -> None:
        """Goes on from what `kept` gave to another run.

        Raises:
            ValueError: it is not of these nodes.
        """
        tensors = itertools.chain.from_iterable(one.tensors() for one in self._kept.values())
        for tensor, array in zip(tensors, saved, strict=True):
            found = torch.from_numpy(array)
            if found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise ValueError(f"an array is {array.shape}, not {tuple(tensor.shape)}")
            tensor.copy_(found)

    def run(self, rows: Sequence[Sequence[int]], pieces: Sequence[int]) -> None:
        """Runs a batch.

        Args:
            rows: token ids of each piece, two or more.
            pieces: their numbers, none of which was run before.

        Raises:
            ModelError: an activation is not a finite number.
        """
        token_ids, lengths = self._padded(rows)
        numbers = torch.tensor(pieces, device=self._device)
        counted = self._counted(token_ids, lengths)

        def take(kind: Kind, layer: int, activations: Tensor) -> None:
            kept, is_counted = self._kept[kind, layer], counted[kind.is_of_pairs]
            kept.top.update(activations, is_counted, numbers)
            if kept.lowest is not None:
                kept.lowest.update(activations, is_counted, numbers)
            self._count(activations[is_counted.which], kept.counts, is_sparse=kind.node_type.is_latent)
            if kept.counts[:, NOT_FINITE].any():
                what = f"{kind.node_type.value} of layer {layer}"
                raise ModelError(f"activations of {what} are not finite", "MODEL_BROKEN")

        self._measured.measure(token_ids, take)

    def _count(self, activations: Tensor, counts: Tensor, *, is_sparse: bool) -> None:
        """Adds to histograms [n, bins] what is counted of all nodes [m, n]."""
        n_nodes, n_cells = counts.shape
        if is_sparse:  # mostly zeros
            _, nodes = where = activations.nonzero(as_tuple=True)
            found = activations[where]
        else:
            nodes, found = torch.arange(n_nodes, device=self._device), activations
        # In 32 bits: half the memory to go through, of what takes the time here.
        bits = (found.contiguous().view(torch.int32) >> UPPER_BITS).bitwise_and_(N_UPPER_BITS - 1)
        places = self._cells_by_bits.index_select(0, bits.view(-1)).view_as(bits)
        places += (nodes * n_cells).int()
        added = torch.bincount(places.view(-1), minlength=counts.numel()).view_as(counts)
        if is_sparse:
            added[:, ZERO] += len(activations) - added.sum(dim=1)
        counts += added

    def found(
        self, random_rows: Sequence[Sequence[int]], random_pieces: Sequence[int]
    ) -> Iterator[KindExamples]:
        """What was found, kind by kind; pieces taken at random are run again for it.

        Args:
            random_rows: token ids of each of these pieces.
            random_pieces: their numbers.
        """
        at_random: dict[tuple[Kind, int], list[NodeExamples]] = {
            (kind, layer): [_none(kind, self._amounts)] for kind, layer in self._kept
        }
        step = batch_rows(self._kinds, self._amounts.context, self._device.type)
        for start in range(0, len(random_rows), step):
            self._run_random(
                random_rows[start : start + step], random_pieces[start : start + step], at_random
            )
        for kind in self._kinds:
            yield KindExamples(kind, self._layers(kind, at_random))

    def _layers(
        self, kind: Kind, at_random: dict[tuple[Kind, int], list[NodeExamples]]
    ) -> Iterator[LayerExamples]:
        for layer in kind.layers:
            yield self._of_layer(layer, self._kept[kind, layer], at_random.pop((kind, layer)))

    def _run_random(
        self,
        rows: Sequence[Sequence[int]],
        pieces: Sequence[int],
        found: dict[tuple[Kind, int], list[NodeExamples]],
    ) -> None:
        token_ids, lengths = self._padded(rows)
        counted = self._counted(token_ids, lengths)

        def take(kind: Kind, layer: int, activations: Tensor) -> None:
            is_counted = counted[kind.is_of_pairs].which[:, :, None]
            values, cells = activations.masked_fill(~is_counted, -torch.inf).max(dim=1)
            padded = activations.new_zeros(kind.n_nodes, len(rows), kind.n_cells(self._amounts.context))
            padded[:, :, : activations.shape[1]] = activations.permute(2, 0, 1)
            numbers = np.broadcast_to(np.asarray(pieces), (kind.n_nodes, len(rows)))
            arrays = (_array(values.T), numbers, _array(cells.T), _array(padded))
            found[kind, layer].append(NodeExamples(np.ones(numbers.shape, np.bool_), *arrays))

        self._measured.measure(token_ids, take)

    def _of_layer(self, layer: int, kept: _OfLayer, at_random: Sequence[NodeExamples]) -> LayerExamples:
        lowest = None if kept.lowest is None else _kept_examples(kept.lowest)
        joined = [
            np.concatenate([getattr(one, field.name) for one in at_random], axis=1)
            for field in fields(NodeExamples)
        ]
        counts = _array(kept.counts[:, :N_BINS])
        return LayerExamples(layer, _kept_examples(kept.top), lowest, NodeExamples(*joined), counts)

    def _counted(self, token_ids: Tensor, lengths: Tensor) -> dict[bool, CountedCells]:
        """Which cells of a batch count, of tokens and, under True, of pairs."""
        n_tokens = token_ids.shape[1]
        return {
            of_pairs: counted_cells(lengths, n_tokens, is_of_pairs=of_pairs) for of_pairs in (False, True)
        }

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] and lengths [B] on the device."""
        lengths = [len(row) for row in rows]
        padded = np.zeros((len(rows), max(lengths, default=0)), np.int64)
        for row, own in zip(padded, rows, strict=True):
            row[: len(own)] = own
        return torch.from_numpy(padded).to(self._device), torch.tensor(lengths, device=self._device)


def batch_rows(kinds: Sequence[Kind], context: int, device_type: str) -> int:
    """How many pieces are run together."""
    widest = max(kind.n_nodes * kind.n_cells(context) for kind in kinds)
    return max(1, min(_MAX_WIDEST // widest, _MAX_ROWS.get(device_type, _MAX_ROWS_ELSEWHERE)))


def batch_bytes(kinds: Sequence[Kind], context: int, n_rows: int) -> int:
    """What a batch takes beside what is kept, about."""
    return 4 * _COPIES * n_rows * max(kind.n_nodes * kind.n_cells(context) for kind in kinds)


def _array(x: Tensor) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = x.cpu().numpy()
    return found


def _none(kind: Kind, amounts: Amounts) -> NodeExamples:
    """No example of any node."""
    places = np.zeros((kind.n_nodes, 0), np.int64)
    activations = np.zeros((kind.n_nodes, 0, kind.n_cells(amounts.context)), np.float32)
    return NodeExamples(places.astype(np.bool_), places.astype(np.float32), places, places, activations)


def _kept_examples(strongest: StrongestExamples) -> NodeExamples:
    tensors = (
        strongest.is_filled,
        strongest.peaks_as_activated,
        strongest.pieces,
        strongest.cells,
        strongest.ordered_activations(),
    )
    return NodeExamples(*map(_array, tensors))

"""The strongest examples that a layer's nodes have had so far."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tdb_server.engine.counted_cells import CountedCells

_NO_PIECE = torch.iinfo(torch.int64).max


class StrongestExamples:
    """Of each of n nodes the k examples with the highest peaks, highest first; of equal ones the earlier.

    So what is kept follows from the pieces alone, whatever order and company they come in.

    Attributes:
        values: the peaks [n, k].
        pieces: of which piece [n, k].
        cells: which of its cells is the peak [n, k].
        slots: where in `activations` the example is [n, k].
        activations: of all cells of the examples, zeros behind shorter ones [n, k, cells].
    """

    def __init__(
        self,
        n_nodes: int,
        k: int,
        n_cells: int,
        device: torch.device,
        floor: float,
        *,
        is_lowest: bool = False,
    ) -> None:
        """Empty at first.

        Args:
            floor: what a peak must exceed.
            is_lowest: whether the lowest activations are looked for. Then `values` are these times -1.
        """
        self._sign, self._floor, self._n_cells = -1 if is_lowest else 1, floor, n_cells
        self.values = torch.full((n_nodes, k), floor, device=device)
        self.pieces = torch.full((n_nodes, k), _NO_PIECE, device=device)
        self.cells = torch.zeros((n_nodes, k), dtype=torch.int64, device=device)
        self.slots = torch.arange(k, device=device).repeat(n_nodes, 1)
        self.activations = torch.zeros((n_nodes, k, n_cells), device=device)

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept, to be saved, or filled with what was."""
        yield from (self.values, self.pieces, self.cells, self.slots, self.activations)

    @property
    def is_filled(self) -> Tensor:
        """Which of the k places have an example [n, k]."""
        return self.pieces != _NO_PIECE

    @property
    def peaks_as_activated(self) -> Tensor:
        """The activations at the peaks [n, k], negative where the lowest are looked for."""
        return self.values * self._sign

    def update(self, activations: Tensor, counted: CountedCells, pieces: Tensor) -> None:
        """Takes what is stronger in more pieces.

        Args:
            activations: [B, cells, n].
            counted: the cells that may be peaks.
            pieces: which pieces these are [B], each for the first time.
        """
        peaks = counted.highest(activations) if self._sign > 0 else -counted.lowest(activations)
        peaks = peaks.T  # [n, B]
        k = self.values.shape[1]
        is_candidate = (peaks >= self.values[:, -1:]) & (peaks > self._floor)
        nodes = is_candidate.any(dim=1).nonzero()[:, 0]  # m of them
        if not len(nodes):
            return
        candidates = peaks[nodes].masked_fill(~is_candidate[nodes], -torch.inf)
        all_values = torch.cat((self.values[nodes], candidates), dim=1)  # [m, k + B]
        all_pieces = torch.cat((self.pieces[nodes], pieces.expand(len(nodes), -1)), dim=1)
        by_piece = all_pieces.argsort(dim=1)
        by_value = all_values.gather(1, by_piece).argsort(dim=1, descending=True, stable=True)
        order = by_piece.gather(1, by_value)[:, :k]
        is_new = order >= k
        stays = torch.zeros_like(all_values, dtype=torch.bool).scatter_(1, order, True)[:, :k]
        # As many leave as come, node by node: each that comes gets the slot of one that leaves.
        slots = self.slots[nodes]
        given = torch.cat((slots, torch.zeros_like(candidates, dtype=slots.dtype)), dim=1).gather(1, order)
        given[is_new] = slots[~stays]
        came, places = is_new.nonzero(as_tuple=True)
        rows = order[came, places] - k
        found = activations[rows, :, nodes[came]]  # [new, cells]
        where = (self._sign * found).masked_fill(~counted.which[rows], -torch.inf).argmax(dim=1)
        cells = torch.cat((self.cells[nodes], torch.zeros_like(given[:, :1]).expand(-1, len(pieces))), dim=1)
        cells = cells.gather(1, order)
        cells[came, places] = where
        self.values[nodes] = all_values.gather(1, order)
        self.pieces[nodes] = all_pieces.gather(1, order)
        self.cells[nodes], self.slots[nodes] = cells, given
        slot = given[came, places]
        self.activations[nodes[came], slot, : found.shape[1]] = found
        self.activations[nodes[came], slot, found.shape[1] :] = 0

    def ordered_activations(self) -> Tensor:
        """`activations` in the order of the other tensors."""
        return self.activations.gather(1, self.slots[:, :, None].expand(-1, -1, self._n_cells))

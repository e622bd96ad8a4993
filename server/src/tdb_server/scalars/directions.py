"""Directions of nodes, one vector each, computed layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.domain.node import NodeIndex, NodeType
from tdb_server.scalars.row_run import RowRun


@dataclass(frozen=True)
class LayerNodes:
    """Some nodes of one type in one layer.

    Attributes:
        layer_index: None for the embedding.
        positions: where they stand in the list they were picked from.
        indices: their tensor indices [m, n_axes].
    """

    node_type: NodeType
    layer_index: int | None
    positions: list[int]
    indices: Tensor


@dataclass(frozen=True)
class Directions:
    """Directions of some nodes.

    Attributes:
        positions: where the nodes stand in the list they were picked from.
        vectors: one direction each [m, d].
        scales: what each is multiplied with [m].
    """

    positions: list[int]
    vectors: Tensor
    scales: Tensor


def by_layer(run: RowRun, nodes: Sequence[NodeIndex]) -> list[LayerNodes]:
    """The nodes, by type and layer, in first-seen order; all indices are copied to the device at once."""
    found: dict[tuple[NodeType, int | None], list[int]] = {}
    for position, node in enumerate(nodes):
        found.setdefault((node.node_type, node.layer_index), []).append(position)
    groups = [
        [index for one in positions for index in nodes[one].tensor_indices] for positions in found.values()
    ]
    everything = torch.tensor([index for own in groups for index in own], device=run.decoder.device)
    parts = torch.split(everything, [len(own) for own in groups])
    return [
        LayerNodes(node_type, layer_index, positions, part.view(len(positions), -1))
        for ((node_type, layer_index), positions), part in zip(found.items(), parts, strict=True)
    ]


def joined(run: RowRun, found: Sequence[Directions]) -> Directions:
    """All of them as one."""
    if not found:
        nothing = torch.zeros(0, run.decoder.config.d_model, device=run.decoder.device)
        return Directions([], nothing, nothing[:, 0])
    return Directions(
        [position for one in found for position in one.positions],
        torch.cat([one.vectors for one in found]),
        torch.cat([one.scales for one in found]),
    )

"""Rows that begin alike are run as one, until something is set in one of them.

A hundred ablations of a prompt are a hundred rows that are the same up to the layer in which each is altered.
A pass without a gradient runs what they share once. In every layer one row of each prompt stands for all of
its rows that nothing has altered yet: the one that is altered last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import PassType
from tdb_server.domain.requests import InferenceSpec
from tdb_server.engine.transfers import Array, upload


@dataclass(frozen=True)
class Beginnings:
    """Which rows a pass runs in every layer.

    Attributes:
        first: the rows that enter the first layer [b].
        places: by layer, and last behind all layers, where each row of the batch stands among those that are
            run [B].
        parting: by the layer behind which rows part, for each row that goes on the place of the one that it
            is a copy of.
        host_places: `places` on the host.
        running: by layer, the rows of the batch that are run.
    """

    first: Tensor
    places: Sequence[Tensor]
    parting: dict[int, Tensor]
    host_places: Sequence[Array]
    running: Sequence[Array]


def shared_beginnings(
    runs: Sequence[InferenceSpec], n_layers: int, device: torch.device
) -> Beginnings | None:
    """What rows share; None where no two of them begin alike."""
    altered = np.array([_first_altered_layer(one, n_layers) for one in runs])
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, run in enumerate(runs):
        by_prompt.setdefault(run.token_ids, []).append(row)
    stand_in = np.empty(len(runs), np.int64)
    for rows in by_prompt.values():
        stand_in[rows] = max(rows, key=lambda row: altered[row])
    # Of each layer, which row is run for each row of the batch; behind all layers, each for itself.
    run_for = [np.where(altered <= layer, np.arange(len(runs)), stand_in) for layer in range(n_layers)]
    run_for.append(np.arange(len(runs)))
    running = [np.unique(one) for one in run_for]
    if len(running[0]) == len(runs):
        return None
    places = [np.searchsorted(own, one) for own, one in zip(running, run_for, strict=True)]
    parting = {
        layer: places[layer][running[layer + 1]]
        for layer in range(n_layers)
        if len(running[layer]) != len(running[layer + 1])
    }
    first, *others = upload([running[0], *parting.values(), *places], device)
    sources = dict(zip(parting, others, strict=False))
    return Beginnings(first, others[len(parting) :], sources, places, running)


def _first_altered_layer(run: InferenceSpec, n_layers: int) -> int:
    """The first layer that something is set in; the number of layers where it is set behind them, or not."""
    layers = [n_layers]
    if run.circuit is not None:
        layers.append(0)
    for one in run.ablations:
        if one.index.pass_type is PassType.BACKWARD:
            continue
        if one.index.layer_index is not None:
            layers.append(one.index.layer_index)
        elif one.index.hook_point is HookPoint.RESID_POST_EMB:
            layers.append(0)
    return min(layers)

"""Rows that begin alike are run as one, until something is set in one of them that is not set in the other.

A hundred ablations of a prompt are a hundred rows that are the same up to the layer in which each is altered,
and so are circuits up to the first layer of which they do not keep the same. A pass without a gradient runs
what they share once: in every layer the first row stands for all of its prompt in which the same is set up to
that layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.engine.plan import Plan
from tdb_server.engine.transfers import Array, upload
from tdb_server.model.hooks import HookSite


@dataclass(frozen=True)
class Beginnings:
    """Which rows a pass runs in every layer.

    Attributes:
        first: the rows that enter the first layer [b].
        places: by layer, and last behind all layers, where each row of the batch stands among those that are
            run [B].
        parting: by the layer behind which rows part, for each row that goes on the place of the one that it
            is a copy of.
        running: by layer, the rows of the batch that are run.
    """

    first: Tensor
    places: Sequence[Tensor]
    parting: dict[int, Tensor]
    running: Sequence[Array]


def shared_beginnings(plan: Plan, device: torch.device) -> Beginnings | None:
    """What rows share; None where no two of them begin alike."""
    n_rows, n_layers = len(plan.rows), plan.n_layers
    alike = _first_equal([row.inference.token_ids for row in plan.rows])
    # Of each layer, which row is run for each row of the batch; behind all layers, each for itself.
    run_for = []
    for settings in _settings(plan):
        alike = _first_equal(list(zip(alike, settings, strict=True)))
        run_for.append(alike)
    run_for.append(list(range(n_rows)))
    running = [np.unique(one) for one in run_for]
    if len(running[0]) == n_rows:
        return None
    places = [np.searchsorted(own, one) for own, one in zip(running, run_for, strict=True)]
    parting = {
        layer: places[layer][running[layer + 1]]
        for layer in range(n_layers)
        if len(running[layer]) != len(running[layer + 1])
    }
    first, *others = upload([running[0], *parting.values(), *places], device)
    sources = dict(zip(parting, others, strict=False))
    return Beginnings(first, others[len(parting) :], sources, running)


def layer_of(site: HookSite, n_layers: int) -> int:
    """The layer whose rows are run at a hook point; the number of layers behind them."""
    hook_point, layer_index = site
    if layer_index is not None:
        return layer_index
    return 0 if hook_point is HookPoint.RESID_POST_EMB else n_layers


def _settings(plan: Plan) -> list[list[tuple[Hashable, ...]]]:
    """By layer and row, what is set on the way forward."""
    found: list[list[tuple[Hashable, ...]]] = [[()] * len(plan.rows) for _ in range(plan.n_layers)]
    for site, interventions in plan.interventions.items():
        layer = layer_of(site, plan.n_layers)
        if layer < plan.n_layers:
            for one in interventions:
                if one.is_forward:
                    found[layer][one.row] += ((one.ablation, one.kept, plan.rows[one.row].baselines),)
    return found


def _first_equal(keys: Sequence[Hashable]) -> list[int]:
    """For each key the place of the first that is equal to it."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]

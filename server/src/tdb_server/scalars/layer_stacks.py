"""Layers ranked and summed together: small ones stacked into one tensor, large ones as they are.

Every operation costs some microseconds however little it computes. For a short prompt a dozen layers, one
after the other, take several times as long as a stack of them; of a long prompt already one layer's numbers
are more than a cache holds, and to copy them into a stack would only cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from tdb_server.scalars.latents import SparseLatents
from tdb_server.scalars.scalar_values import DenseScalars, ScalarValues, SparseScalars, StackAxis

MAX_ENTRIES = {"cpu": 2**18, "cuda": 2**24}
"""By type of device. A stack of float32 of this size fits into a core's second-level cache; on a GPU it takes
64 MiB, and what is larger takes longer to compute than to launch."""


@dataclass(frozen=True)
class LayerStack:
    """Some consecutive layers' numbers of one derived scalar.

    Attributes:
        layers: the layers; None alone for what has no layers.
        values: their numbers; a node's indices have the layer's place in `layers` before them.
    """

    layers: tuple[int | None, ...]
    values: ScalarValues


def stack_layers(
    layers: Iterable[tuple[int | None, ScalarValues]], first_layers: Collection[int] = ()
) -> Iterator[LayerStack]:
    """Stacks as many layers as there is room for.

    Args:
        layers: layers in order, each with its numbers.
        first_layers: layers that share no stack with those before them.
    """
    waiting: list[tuple[int | None, ScalarValues]] = []
    n_entries = 0
    for layer_index, values in layers:
        n_entries += values.n_entries
        if waiting and not (
            n_entries <= MAX_ENTRIES[values.device.type]
            and _is_alike(values, waiting[0][1])
            and _part(waiting[0][0], first_layers) == _part(layer_index, first_layers)
        ):
            yield _stack(waiting)
            waiting, n_entries = [], values.n_entries
        waiting.append((layer_index, values))
    if waiting:
        yield _stack(waiting)


def _is_alike(one: ScalarValues, other: ScalarValues) -> bool:
    """Whether they can be stacked: a later layer's direct effects may cover no tokens."""
    if isinstance(one, DenseScalars) and isinstance(other, DenseScalars):
        return one.shape == other.shape
    return True


def _part(layer_index: int | None, first_layers: Collection[int]) -> int:
    """How many of the `first_layers` are this layer or before it."""
    return 0 if layer_index is None else sum(one <= layer_index for one in first_layers)


def _stack(layers: Sequence[tuple[int | None, ScalarValues]]) -> LayerStack:
    dense = [values for _, values in layers if isinstance(values, DenseScalars)]
    sparse = [values for _, values in layers if isinstance(values, SparseScalars)]
    return LayerStack(
        tuple(layer_index for layer_index, _ in layers),
        _stack_dense(dense) if dense else _stack_sparse(sparse),
    )


def _stack_dense(layers: Sequence[DenseScalars]) -> DenseScalars:
    """One factor for several layers: their products."""
    first = layers[0]
    factors = [factor[None] for factor in first.factors]
    if len(layers) > 1:
        products = torch.empty(len(layers), *first.shape, dtype=first.dtype, device=first.device)
        for one, into in zip(layers, products, strict=True):
            one.write_product(into)
        factors = [products]
    axes, order = (StackAxis.LAYERS, *first.axes), (StackAxis.LAYERS, *first.order)
    return replace(first, factors=factors, axes=axes, order=order)


def _stack_sparse(layers: Sequence[SparseScalars]) -> SparseScalars:
    coordinates = [F.pad(one.active.coordinates, (1, 0), value=place) for place, one in enumerate(layers)]
    active = SparseLatents(
        torch.cat(coordinates),
        torch.cat([one.active.values for one in layers]),
        (len(layers), *layers[0].active.shape),
    )
    return SparseScalars(active, torch.cat([one.values for one in layers]))

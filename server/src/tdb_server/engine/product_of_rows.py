"""Products of factors over a group of rows, with what is absent in them: padding, and layers out of sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.derived_scalar import Declaration
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension
from tdb_server.engine.plan import latent_depth, mlp_depth, write_depth
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.rows import Rows

_KEYS = Dimension.ATTENDED_TO_SEQUENCE_TOKENS


def product_at_all_tokens(
    rows: Rows, declared: Declaration, factors: Sequence[Layers], axes: Sequence[Dimension]
) -> Product:
    """The product of factors whose axes behind rows and layers are `axes`."""
    absent = None if declared.hook_point is HookPoint.LOGITS else _padding(rows, axes)
    return Product(
        factors=tuple(factors),
        layers=_layers(rows, declared),
        axes=tuple(axes),
        order=declared.dimensions,
        n_rows=rows.n_rows,
        n_tokens=rows.plan.n_tokens,
        lengths=tuple(row.n_tokens for row in rows.planned),
        absent=absent,
    )


def product_at_directions(
    rows: Rows, declared: Declaration, factors: Sequence[Layers], axes: Sequence[Dimension]
) -> Product:
    """The same where the token axis is that of the directions of interest; elsewhere it is zero."""
    product = product_at_all_tokens(rows, declared, factors, axes)
    absent = [_padding(rows, axes, of_directions=True), _unseen_layers(rows, declared, product, axes)]
    return replace(
        product,
        tokens=rows.inputs.host_direction_tokens[rows.rows],
        device_tokens=rows.direction_tokens,
        absent=_any_of(absent),
    )


def _layers(rows: Rows, declared: Declaration) -> tuple[int | None, ...]:
    """The layers in which a derived scalar exists."""
    if not declared.is_per_layer:
        return (None,)
    if declared.hook_point is not None and is_of_autoencoder(declared.hook_point):
        return tuple(layer for layer, _ in rows.layers_of(rows.autoencoder(declared.hook_point)))
    return tuple(rows.layers)


def _padding(rows: Rows, axes: Sequence[Dimension], *, of_directions: bool = False) -> Tensor | None:
    """Entries [B, 1, ...] that only padding has."""
    absent = rows.absent_tokens
    found = [
        _along(absent, axes, axis)
        for axis, one in enumerate(axes)
        if absent is not None and (one is _KEYS or (one is Dimension.SEQUENCE_TOKENS and not of_directions))
    ]
    if of_directions and rows.inputs.is_ragged:
        is_padding = rows.inputs.is_direction[rows.rows] == 0
        found.append(_along(is_padding, axes, list(axes).index(Dimension.SEQUENCE_TOKENS)))
    return _any_of(found)


def _unseen_layers(
    rows: Rows, declared: Declaration, product: Product, axes: Sequence[Dimension]
) -> Tensor | None:
    """Layers [B, L, ...] whose writes a row's objective does not see."""
    if not rows.has_traces or not declared.is_per_layer:
        return None
    hook_point = declared.hook_point
    assert hook_point is not None
    depth = write_depth(hook_point)
    if is_of_autoencoder(hook_point):
        depth = partial(latent_depth, rows.autoencoder(hook_point).site)
    seen = rows.inputs.depths[rows.rows, None]
    # All depths are made on the device and some picked: to copy a list there, the host would wait for a GPU.
    all_depths = torch.arange(mlp_depth(rows.model.decoder.config.n_layers), device=seen.device)
    depths = torch.stack([all_depths[depth(layer)] for layer in product.layers if layer is not None])
    unseen = depths > seen
    return unseen.view(*unseen.shape, *[1] * len(axes))


def _along(absent: Tensor, axes: Sequence[Dimension], axis: int) -> Tensor:
    """A mask [B, n] along one of the axes behind rows and layers."""
    shape = [len(absent), 1, *[1] * len(axes)]
    shape[axis + 2] = absent.shape[1]
    return absent.view(shape)


def _any_of(masks: Sequence[Tensor | None]) -> Tensor | None:
    found = None
    for one in masks:
        if one is not None:
            found = one if found is None else found | one
    return found

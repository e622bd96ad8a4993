"""Products of factors over a group of rows, with what is absent in them: padding, and layers out of sight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce

import torch
from torch import Tensor

from tdb_server.domain.axes import TOKEN_DIMENSIONS, is_of_autoencoder
from tdb_server.domain.derived_scalar import Declaration
from tdb_server.domain.node import Dimension
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.rows import Rows
from tdb_server.engine.streams import latent_depth, mlp_depth, write_depth


def product_at_all_tokens(
    rows: Rows, declared: Declaration, factors: Sequence[Layers], axes: Sequence[Dimension]
) -> Product:
    """The product of factors whose axes behind rows and layers are `axes`."""
    padding = rows.absent_tokens
    return Product(
        factors=tuple(factors),
        layers=_layers(rows, declared),
        axes=tuple(axes),
        order=declared.dimensions,
        n_rows=rows.n_rows,
        n_tokens=rows.plan.n_tokens,
        lengths=tuple(row.n_tokens for row in rows.planned),
        absent=_any_of([_along(padding, axes, one) for one in TOKEN_DIMENSIONS]),
    )


def product_at_directions(
    rows: Rows, declared: Declaration, factors: Sequence[Layers], axes: Sequence[Dimension]
) -> Product:
    """The same where the token axis is that of the directions of interest; elsewhere it is zero."""
    product = product_at_all_tokens(rows, declared, factors, axes)
    is_padding = rows.inputs.is_direction[rows.span] == 0 if rows.inputs.is_ragged else None
    absent = [
        _along(rows.absent_tokens, axes, Dimension.ATTENDED_TO_SEQUENCE_TOKENS),
        _along(is_padding, axes, Dimension.SEQUENCE_TOKENS),
        _unseen_layers(rows, declared, product),
    ]
    return replace(
        product,
        tokens=rows.inputs.host_direction_tokens[rows.span],
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


def _unseen_layers(rows: Rows, declared: Declaration, product: Product) -> Tensor | None:
    """Layers [B, L, ...] whose writes a row's objective does not see."""
    if rows.sees_all_writes or not declared.is_per_layer:
        return None
    hook_point = declared.hook_point
    assert hook_point is not None
    depth = write_depth(hook_point)
    if is_of_autoencoder(hook_point):
        depth = partial(latent_depth, rows.autoencoder(hook_point).site)
    seen = rows.inputs.depths[rows.span, None]
    # All depths are made on the device and some picked: to copy a list there, the host would wait for a GPU.
    all_depths = torch.arange(mlp_depth(rows.model.decoder.config.n_layers), device=seen.device)
    depths = torch.stack([all_depths[depth(layer)] for layer in product.layers if layer is not None])
    unseen = depths > seen
    return unseen.view(*unseen.shape, *[1] * len(product.axes))


def _along(absent: Tensor | None, axes: Sequence[Dimension], axis: Dimension) -> Tensor | None:
    """A mask [B, n] along one of the axes behind rows and layers, where there are both."""
    if absent is None or axis not in axes:
        return None
    return absent.view(len(absent), 1, *(-1 if one is axis else 1 for one in axes))


def _any_of(masks: Sequence[Tensor | None]) -> Tensor | None:
    there = [one for one in masks if one is not None]
    return reduce(torch.logical_or, there) if there else None

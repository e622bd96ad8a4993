"""A hook point's values, or the gradients there, with axes in the order in which clients index them."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from tdb_server.domain.axes import TOKEN_DIMENSIONS
from tdb_server.domain.derived_scalar import Declaration, Measure
from tdb_server.domain.requests import ActivationsSpec
from tdb_server.domain.results import ActivationsResult, LabelledArray
from tdb_server.engine.products import Product
from tdb_server.engine.rows import Rows
from tdb_server.engine.scalars import product_of
from tdb_server.engine.transfers import download


def activations(rows: Rows, row: int, spec: ActivationsSpec) -> ActivationsResult:
    """One row's values of a hook point, layer by layer."""
    hook_point, n_tokens = spec.hook_point, rows.planned[row].n_tokens
    dimensions = hook_point.dimensions
    declared = Declaration(
        dimensions, hook_point.node_type, Measure.ACTIVATION, hook_point, hook_point.is_per_layer
    )
    values = []
    for layer in spec.layers:
        rows_there = rows if layer is None else rows.of_layer(layer)
        product = product_of(rows_there, declared, spec.pass_type)
        values.append(_of_row(product, row, n_tokens))
    tokens = list(spec.token_indices)
    arrays = download([one[tokens] for one in values])
    layers = zip(spec.layers, (LabelledArray(one, dimensions) for one in arrays), strict=True)
    return ActivationsResult(tuple(layers), spec.token_indices)


def _of_row(product: Product, row: int, n_tokens: int) -> Tensor:
    """One row's numbers of one layer without padding, its axes in the order of a node's indices."""
    factors = [one.tensors[0] for one in product.factors]
    numbers = reduce(torch.mul, [x[0 if len(x) == 1 else row] for x in factors])
    if product.ids is not None:  # active latents side by side
        ids = product.ids.tensors[0][row]
        numbers = numbers.new_zeros(len(ids), product.n_latents).scatter_add_(1, ids, numbers)
    numbers = numbers.permute([product.axes.index(one) for one in product.order])
    for axis, one in enumerate(product.order):
        if one in TOKEN_DIMENSIONS:
            numbers = numbers.narrow(axis, 0, n_tokens)
    return numbers

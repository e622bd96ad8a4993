"""One component over all tokens, or over all token pairs, of one row."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from tdb_server.domain.derived_scalar import DerivedScalar, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeIndex, Nodes, NodeType, PassType
from tdb_server.domain.requests import DerivedAttentionScalarsSpec, DerivedScalarsSpec
from tdb_server.domain.results import (
    AttentionTotals,
    DerivedAttentionScalarsResult,
    DerivedScalarsResult,
    TopTokens,
)
from tdb_server.engine.products import NodeCoordinates, Product
from tdb_server.engine.rank_tokens import DirectionsToRank, TokenRanker, scaled
from tdb_server.engine.rows import Rows
from tdb_server.engine.scalars import product_of
from tdb_server.engine.token_pairs import writes_to_latent
from tdb_server.engine.transfers import Array, download


def derived_scalars(
    rows: Rows, row: int, spec: DerivedScalarsSpec, ranker: TokenRanker
) -> DerivedScalarsResult:
    """One component's derived scalar at every token, and the tokens of its direction."""
    declared = spec.derived_scalar.declared
    if spec.layer_index is not None:
        rows = rows.of_layer(spec.layer_index)
    product = product_of(rows, declared, spec.pass_type)
    n_tokens = rows.planned[row].n_tokens
    cells = np.stack([np.arange(n_tokens), np.full(n_tokens, spec.activation_index)], axis=1)
    activations = numbers_at(product, row, spec.layer_index, cells)
    pass_type = spec.pass_type if declared.reads is not None else PassType.FORWARD
    make_node = partial(NodeIndex, declared.node_type, spec.layer_index, pass_type=pass_type)
    maximum = activations.max() if spec.normalizes_by_prompt_maximum else spec.normalizing_value
    return DerivedScalarsResult(
        nodes=Nodes(make_node((token, spec.activation_index)) for token in range(n_tokens)),
        activations=activations,
        normalized_activations=None if maximum is None else normalized_by(activations, maximum),
        top_tokens=_top_tokens(rows, row, spec, ranker, activations[:1], product),
    )


def numbers_at(product: Product, row: int, layer_index: int | None, cells: Array) -> Array:
    """A derived scalar's numbers in one row and layer, at cells in node order [m, n_axes]: [m]."""
    found = np.zeros(len(cells), np.float32)
    is_covered, cells = product.covered(np.full(len(cells), row), cells)
    if not is_covered.any():
        return found
    layer = product.layers.index(layer_index)
    coordinates = torch.from_numpy(cells[is_covered].T.copy()).to(product.device)
    of_row = torch.full_like(coordinates[0], row)
    where = NodeCoordinates(of_row, torch.full_like(of_row, layer), [(layer, slice(None))])
    (numbers,) = download([product.at(where, dict(zip(product.order, coordinates, strict=True)))])
    found = found.astype(numbers.dtype)
    found[is_covered] = numbers
    return found


def _top_tokens(
    rows: Rows, row: int, spec: DerivedScalarsSpec, ranker: TokenRanker, first: Array, product: Product
) -> TopTokens | None:
    """Output tokens that the component's write at the first token upvotes, where they are asked for.

    `first` [1] is its activation there. For a read direction, the input tokens that feed it. None where what
    a unit of activation writes depends on the prompt.
    """
    declared, decoder, n_tokens = spec.derived_scalar.declared, rows.model.decoder, spec.n_top_tokens
    if n_tokens is None:
        return None
    if declared.measure is Measure.VOCABULARY_READ:
        scores = product.factors[0].tensors[0][row, :1]  # [1, V]
        return scaled(ranker.rank_scores(scores, n_tokens), np.ones_like(first))
    if spec.layer_index is None:
        return None
    which = torch.tensor([spec.activation_index], device=decoder.device)
    if declared.node_type is NodeType.MLP_NEURON:
        written_with = HookPoint.MLP_POST_ACT
        write = decoder.blocks[spec.layer_index].mlp.unit_writes(which)  # [1, d]
    elif declared.node_type.is_latent:
        autoencoder = rows.autoencoder(declared.node_type)
        written_with = autoencoder.site.hook_point
        write = autoencoder.write_directions(decoder, spec.layer_index, which)
    else:
        return None
    scales, scale = torch.from_numpy(first).to(write.device), rows.write_scale(written_with, spec.layer_index)
    scales = scales if scale is None else scales / scale[row, 0]
    to_rank = DirectionsToRank(write, np.zeros(1, int), scales, n_tokens, is_output=True)
    return next(ranker.token_lists([to_rank]))


def derived_attention_scalars(
    rows: Rows, row: int, spec: DerivedAttentionScalarsSpec
) -> DerivedAttentionScalarsResult:
    """One head (or all heads' writes to one latent) at every token pair, with totals and maxima per token."""
    planned = rows.planned[row]
    n_tokens = planned.n_tokens
    if spec.derived_scalar is DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS:
        wanted = planned.inference.within_layer_gradient
        assert wanted is not None
        (pairs,) = download([writes_to_latent(rows, row, spec.layer_index, wanted)])
    else:
        query, key = np.divmod(np.arange(n_tokens**2), n_tokens)
        cells = np.stack([query, key, np.full(n_tokens**2, spec.activation_index)], axis=1)
        product = product_of(rows.of_layer(spec.layer_index), spec.derived_scalar.declared)
        pairs = numbers_at(product, row, spec.layer_index, cells).reshape(n_tokens, n_tokens)
    visible = np.tril(pairs)
    best = np.where(np.triu(np.ones_like(pairs, dtype=bool), 1), -np.inf, pairs)
    total_in, total_out = visible.sum(axis=1), visible.sum(axis=0)
    scalar_max = best.max() if spec.max_scalar is None else spec.max_scalar
    in_max = total_in.max() if spec.max_total_in is None else spec.max_total_in
    out_max = total_out.max() if spec.max_total_out is None else spec.max_total_out
    best_in, best_out = best.max(axis=1), best.max(axis=0)
    return DerivedAttentionScalarsResult(
        visible,
        normalized_by(visible, scalar_max),
        AttentionTotals(
            total_in, normalized_by(total_in, in_max), best_in, normalized_by(best_in, scalar_max)
        ),
        AttentionTotals(
            total_out, normalized_by(total_out, out_max), best_out, normalized_by(best_out, scalar_max)
        ),
    )


def normalized_by(x: Array, maximum: float) -> Array:
    """`x` over its maximum, negative numbers as zero, as for a colour scale; zeros where none is positive."""
    with np.errstate(over="ignore"):  # over a maximum that is close to zero, numbers are infinite
        found: Array = (x.clip(min=0) / np.float64(maximum if maximum > 0 else 1)).astype(x.dtype)
    return found

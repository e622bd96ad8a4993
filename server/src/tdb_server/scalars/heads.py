"""Derived scalars of attention heads. Shapes: H heads, T tokens, q/k attended-from/-to token, e head width.

What head h moves from token k to token q is `attn(q, k, h) · v(k, h) W_O[h]`. All scalars of a head's node
are the attention times something that depends on fewer indices, which keeps them cheap.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALAR_SHAPES, DerivedScalar
from tdb_server.domain.node import Dimension
from tdb_server.domain.place import Place
from tdb_server.scalars.row_run import RowRun, attention_depth, axes_of
from tdb_server.scalars.scalar_values import DenseScalars

_PAIR_AXES = axes_of(Place.ATTN_QK_PROBS)
_PAIR_ORDER = DERIVED_SCALAR_SHAPES[DerivedScalar.ATTN_QK_PROBS].dimensions
_TOKEN_AXES = (Dimension.ATTN_HEADS, Dimension.SEQUENCE_TOKENS)
_TOKEN_ORDER = DERIVED_SCALAR_SHAPES[DerivedScalar.ATTN_WRITE_NORM_PER_SEQUENCE_TOKEN].dimensions


def _of_pairs(run: RowRun, *factors: Tensor, tokens: Tensor | None = None) -> DenseScalars:
    return DenseScalars(factors, _PAIR_AXES, _PAIR_ORDER, run.n_tokens, tokens)


def _of_tokens(run: RowRun, numbers: Tensor, tokens: Tensor | None = None) -> DenseScalars:
    return DenseScalars((numbers,), _TOKEN_AXES, _TOKEN_ORDER, run.n_tokens, tokens)


def values_by_head(run: RowRun, layer_index: int) -> Tensor:
    """Each query head's values [H, T, e]."""
    return run.decoder.repeat_groups(run.value(Place.ATTN_V, layer_index)[None])[0]


def out_weights(run: RowRun, layer_index: int) -> Tensor:
    """Output weights by head, a view of them [d, H, e]."""
    config = run.decoder.config
    return run.decoder.weights.layers[layer_index].attn_out_weight.view(-1, config.n_heads, config.d_head)


def in_slices(x: Tensor, head: Tensor, n_heads: int) -> Tensor:
    """Vectors of one head each, in that head's slice of all heads' channels: [m, e] to [m, n_heads * e].

    One product with all heads' weights is cheaper than to pick each vector's own.
    """
    every = torch.arange(len(x), device=x.device)
    return x.new_zeros(len(x), n_heads, x.shape[1]).index_put((every, head), x).flatten(1)


def write_norm(run: RowRun, layer_index: int) -> DenseScalars:
    """Attention × norm of what the value writes."""
    values = values_by_head(run, layer_index)
    gram = run.facts.head_write_grams[layer_index]  # [H, e, e]
    norms = ((values @ gram) * values).sum(dim=-1).clamp(min=0).sqrt()  # [H, T]
    return _of_pairs(run, run.value(Place.ATTN_QK_PROBS, layer_index), norms[:, None])


def act_times_grad(run: RowRun, layer_index: int) -> DenseScalars:
    """Attention × its gradient."""
    probs = run.value(Place.ATTN_QK_PROBS, layer_index)
    return _of_pairs(run, probs, run.gradient(Place.ATTN_QK_PROBS, layer_index))


def direct_effect(run: RowRun, layer_index: int) -> DenseScalars:
    """Attention × what the value writes, projected onto the direction of interest."""
    weight = run.decoder.weights.layers[layer_index].attn_out_weight
    tokens, onto = run.project_direction(attention_depth(layer_index), weight)
    projected = _project_values(run, layer_index, onto)
    probs = run.value(Place.ATTN_QK_PROBS, layer_index)[:, tokens]
    return _of_pairs(run, probs, projected, tokens=tokens)


def project_writes(run: RowRun, layer_index: int, directions: Tensor) -> Tensor:
    """`v(k, h) W_O[h] · direction` for n directions [n, d]: [H, n, T]."""
    weight = run.decoder.weights.layers[layer_index].attn_out_weight
    return _project_values(run, layer_index, directions @ weight)


def _project_values(run: RowRun, layer_index: int, onto: Tensor) -> Tensor:
    """`v(k, h) · onto(h)` for n vectors of all heads' channels [n, H * e]: [H, n, T]."""
    values = run.value(Place.ATTN_V, layer_index)  # [G, T, e]
    n_groups, n_tokens, d_head = values.shape
    n_heads = run.decoder.config.n_heads
    by_head = onto.view(len(onto), n_heads, d_head).transpose(0, 1)  # [H, n, e]
    by_group = by_head.reshape(n_groups, n_heads // n_groups * len(onto), d_head)
    return (by_group @ values.transpose(1, 2)).view(n_heads, len(onto), n_tokens)


def write_norm_per_token(run: RowRun, layer_index: int) -> DenseScalars:
    """Norm of what a head writes at a token, over all it attends to."""
    v_out = run.value(Place.ATTN_V_OUT, layer_index)
    writes = torch.einsum("hte,dhe->htd", v_out, out_weights(run, layer_index))
    return _of_tokens(run, writes.norm(dim=-1))


def act_times_grad_per_token(run: RowRun, layer_index: int) -> DenseScalars:
    """A head's attention × gradient at a token, summed over all it attends to."""
    return _of_tokens(run, act_times_grad(run, layer_index).product.sum(dim=-1))


def direct_effect_per_token(run: RowRun, layer_index: int) -> DenseScalars:
    """A head's direct effect at a token, summed over all it attends to."""
    effect = direct_effect(run, layer_index)
    return _of_tokens(run, effect.product.sum(dim=-1), effect.tokens)


def write_summed_over_heads(run: RowRun, layer_index: int) -> DenseScalars:
    """What all heads together move from token k to token q [q, k, d]."""
    values = values_by_head(run, layer_index)
    written = torch.einsum("hke,dhe->hkd", values, out_weights(run, layer_index))
    writes = torch.einsum("hqk,hkd->qkd", run.value(Place.ATTN_QK_PROBS, layer_index), written)
    axes = DERIVED_SCALAR_SHAPES[DerivedScalar.ATTN_WRITE_SUM_HEADS].dimensions
    return DenseScalars((writes,), axes, axes, run.n_tokens)

"""Derived scalars of a group of rows, each as a product of factors.

Everything is linear in what the passes kept. For a neuron, a head's attention from token to token, and a
latent alike:

    act x grad      activation · d objective / d activation
    direct effect   activation · (unit write · direction of interest)
    write norm      activation · ‖unit write‖

so that the activation is one factor, and the other depends on fewer indices, or was computed by the passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import DERIVED_SCALARS, Declaration, DerivedScalar, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, PassType
from tdb_server.engine.interventions import PAIR_HOOK_POINTS
from tdb_server.engine.latent_scalars import error_scalars, latent_scalars
from tdb_server.engine.logit_scalars import logit_scalars, vocabulary_reads
from tdb_server.engine.plan import (
    attention_depth,
    is_error,
    is_of_autoencoder,
    mlp_depth,
    write_depth,
)
from tdb_server.engine.product_of_rows import product_at_all_tokens, product_at_directions
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.rows import Rows, axes_of, of_each


def product_of(rows: Rows, scalar: DerivedScalar, pass_type: PassType = PassType.FORWARD) -> Product:
    """A derived scalar of all layers that have it; with the backward pass, the gradients instead."""
    declared = DERIVED_SCALARS[scalar]
    hook_point = declared.hook_point
    if declared.measure is Measure.VOCABULARY_READ:
        return product_at_all_tokens(rows, declared, [Layers([vocabulary_reads(rows)])], declared.dimensions)
    assert hook_point is not None
    if hook_point is HookPoint.LOGITS:
        return logit_scalars(rows, declared, pass_type)
    if is_of_autoencoder(hook_point):
        if is_error(hook_point):
            return error_scalars(rows, declared, hook_point, pass_type)
        return latent_scalars(rows, declared, hook_point, pass_type)
    if hook_point is HookPoint.ATTN_V_OUT and declared.measure is not Measure.ACTIVATION:
        return _of_heads(rows, declared)
    match declared.measure:
        case Measure.ACTIVATION:
            return _activations(rows, declared, hook_point, pass_type)
        case Measure.ACT_TIMES_GRAD:
            factors = [rows.values(hook_point), rows.gradients(hook_point)]
            return product_at_all_tokens(rows, declared, factors, axes_of(hook_point))
        case Measure.WRITE_NORM:
            factors = [rows.values(hook_point), _write_norms(rows, hook_point)]
            return product_at_all_tokens(rows, declared, factors, axes_of(hook_point))
        case Measure.DIRECT_EFFECT:
            return _direct_effects(rows, declared, hook_point)
        case Measure.SUMMED_WRITE:
            return product_at_all_tokens(rows, declared, [_summed_writes(rows)], declared.dimensions)
        case _:
            return _of_vectors(rows, declared, hook_point)


def _activations(rows: Rows, declared: Declaration, hook_point: HookPoint, pass_type: PassType) -> Product:
    if declared.is_previous_layer:
        values = before_layers(rows, pass_type)
    else:
        values = rows.values(hook_point) if pass_type is PassType.FORWARD else rows.gradients(hook_point)
    not_nodes = None
    is_pattern = pass_type is PassType.FORWARD and hook_point is HookPoint.ATTN_QK_PROBS
    if hook_point in PAIR_HOOK_POINTS and not is_pattern:  # which is zero where attention may not look
        not_nodes = rows.model.decoder.hidden_cells(rows.plan.n_tokens)[None, None, None]
    product = product_at_all_tokens(rows, declared, [values], axes_of(hook_point))
    # The first token attends to itself alone, in every head.
    n_heads = rows.model.decoder.config.n_heads
    return replace(product, not_nodes=not_nodes, n_ties=n_heads if is_pattern else 0)


def before_layers(rows: Rows, pass_type: PassType = PassType.FORWARD) -> Layers:
    """The residual stream before each layer [B, T, d], or the gradients there."""
    read = rows.values if pass_type is PassType.FORWARD else rows.gradients
    embedding, behind = read(HookPoint.RESID_POST_EMB).tensors, read(HookPoint.RESID_POST_MLP).tensors
    return rows.once(("before layers", pass_type), lambda: [*embedding, *behind[:-1]])


def _write_norms(rows: Rows, hook_point: HookPoint) -> Layers:
    """Norms of what activation 1 of each neuron, or full attention of each head to a token, writes."""
    if hook_point is HookPoint.MLP_POST_ACT:
        return Layers.of(rows.precomputed.neuron_write_norms[None, :, None])  # [1, L, 1, F]
    return rows.once("value norms", lambda: [one[:, :, None] for one in _value_norms(rows)])


def _value_norms(rows: Rows) -> Sequence[Tensor]:
    """Norms of what each head's value of each token writes: of each layer [B, H, T]."""
    values, grams = rows.values(HookPoint.ATTN_V), rows.precomputed.head_write_grams  # [L, H, e, e]
    if values.together is not None:
        of_heads = rows.model.decoder.blocks[0].attention.by_head(values.together)  # [B, L, H, T, e]
        return _norms(of_heads, grams).unbind(1)
    return [
        _norms(rows.model.decoder.blocks[0].attention.by_head(one), gram)
        for one, gram in zip(values.tensors, grams, strict=True)
    ]


def _direct_effects(rows: Rows, declared: Declaration, hook_point: HookPoint) -> Product:
    if hook_point is HookPoint.MLP_POST_ACT:
        projected = rows.once("projected neurons", lambda: _projected_neurons(rows))
    else:
        projected = rows.once("projected values", lambda: _projected_values(rows))
    axes = axes_of(hook_point)
    values = rows.at_direction_tokens(hook_point, rows.values(hook_point), axes)
    return product_at_directions(rows, declared, [values, projected], axes)


def _projected_neurons(rows: Rows) -> Sequence[Tensor]:
    """Unit writes · directions of interest: of each layer [B, n, F]."""
    return [
        block.mlp.write_transposed(rows.seen_directions(mlp_depth(layer)))
        for layer, block in enumerate(rows.model.decoder.blocks)
    ]


def _projected_values(rows: Rows) -> Sequence[Tensor]:
    """What full attention to a token writes · directions of interest: of each layer [B, H, n, T]."""
    found = []
    for layer, block in enumerate(rows.model.decoder.blocks):
        onto = block.attention.write_transposed(rows.seen_directions(attention_depth(layer)))
        found.append(onto)
    values = rows.values(HookPoint.ATTN_V)
    if values.together is not None:
        onto = found[0][:, None] if len(found) == 1 else torch.stack(found, dim=1)
        return project_values(values.together, onto).unbind(1)
    return [project_values(v, onto) for v, onto in zip(values.tensors, found, strict=True)]


def _of_heads(rows: Rows, declared: Declaration) -> Product:
    """A head at a token: its node's numbers summed over what it attends to."""
    axes = (Dimension.ATTN_HEADS, Dimension.SEQUENCE_TOKENS)
    match declared.measure:
        case Measure.WRITE_NORM:
            v_out = rows.values(HookPoint.ATTN_V_OUT)
            norms = [
                torch.einsum("bhte,hde->bhtd", x, block.attention.out_weights()).norm(dim=-1)
                for x, block in zip(v_out.tensors, rows.model.decoder.blocks, strict=True)
            ]
            return product_at_all_tokens(rows, declared, [Layers(norms)], axes)
        case Measure.ACT_TIMES_GRAD:
            pairs = [rows.values(HookPoint.ATTN_QK_PROBS), rows.gradients(HookPoint.ATTN_QK_PROBS)]
            return product_at_all_tokens(rows, declared, [_summed_over_keys(*pairs)], axes)
        case _:
            values = rows.values(HookPoint.ATTN_QK_PROBS)
            probs = rows.at_direction_tokens(
                HookPoint.ATTN_QK_PROBS, values, axes_of(HookPoint.ATTN_QK_PROBS)
            )
            projected = rows.once("projected values", lambda: _projected_values(rows))
            return product_at_directions(rows, declared, [_summed_over_keys(probs, projected)], axes)


def _summed_writes(rows: Rows) -> Layers:
    """What all heads together move from token k to token q: of each layer [B, q, k, d]."""
    found = []
    for layer, block in enumerate(rows.model.decoder.blocks):
        values = rows.model.decoder.blocks[0].attention.by_head(rows.values(HookPoint.ATTN_V).tensors[layer])
        written = torch.einsum("bhke,hde->bhkd", values, block.attention.out_weights())
        probs = rows.values(HookPoint.ATTN_QK_PROBS).tensors[layer]
        found.append(torch.einsum("bhqk,bhkd->bqkd", probs, written))
    return Layers(found)


def _of_vectors(rows: Rows, declared: Declaration, hook_point: HookPoint) -> Product:
    """One number per token, laid out [B, T, 1]."""
    axes = declared.dimensions
    if declared.measure is Measure.ONE:
        like = rows.cache.final_residual
        ones = like.new_ones(rows.n_rows, rows.plan.n_tokens)
        if rows.absent_tokens is not None:
            ones = ones.masked_fill(rows.absent_tokens, 0)
        return product_at_all_tokens(rows, declared, [Layers([ones[..., None]])], axes)
    vectors = rows.values(hook_point)
    if declared.measure is Measure.VECTOR_NORM:
        norms = of_each(lambda x: x.norm(dim=-1, keepdim=True), vectors)
        return product_at_all_tokens(rows, declared, [norms], axes)
    if declared.measure is Measure.VECTOR_TIMES_GRAD:
        found = of_each(lambda x, y: (x * y).sum(dim=-1, keepdim=True), vectors, rows.gradients(hook_point))
        return product_at_all_tokens(rows, declared, [found], axes)
    at_tokens = rows.at_direction_tokens(hook_point, vectors, axes)
    depth = write_depth(hook_point)
    effects = [
        (x * rows.seen_directions(depth(layer) if declared.is_per_layer else 0)).sum(dim=-1, keepdim=True)
        for layer, x in enumerate(at_tokens.tensors)
    ]
    return product_at_directions(rows, declared, [Layers(effects)], axes)


def project_values(values: Tensor, onto: Tensor) -> Tensor:
    """`v(k, h) · onto(h)` for n vectors of all heads' channels.

    Values [..., G, T, e] and vectors [..., n, H * e] to [..., H, n, T].
    """
    *rows, n_groups, n_tokens, d_head = values.shape
    n = onto.shape[-2]
    by_head = onto.view(*onto.shape[:-1], -1, d_head).transpose(-2, -3)  # [..., H, n, e]
    by_group = by_head.reshape(*rows, n_groups, -1, d_head)  # [..., G, H / G * n, e]
    found: Tensor = by_group @ values.transpose(-1, -2)
    return found.view(*rows, -1, n, n_tokens)


def _norms(values: Tensor, grams: Tensor) -> Tensor:
    """Norms of what values [..., T, e] write, given their heads' grams [..., e, e]: [..., T]."""
    return ((values @ grams) * values).sum(dim=-1).clamp(min=0).sqrt()


def _summed_over_keys(probs: Layers, others: Layers) -> Layers:
    """`probs * others` summed over the tokens attended to, layer by layer: [B, H, T]."""
    return Layers([(x * y).sum(dim=-1) for x, y in zip(probs.tensors, others.tensors, strict=True)])

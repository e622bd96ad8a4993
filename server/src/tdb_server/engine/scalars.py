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
from functools import reduce

import torch
from torch import Tensor

from tdb_server.domain.axes import is_of_autoencoder
from tdb_server.domain.derived_scalar import Declaration, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import Dimension, NodeType, PassType
from tdb_server.engine.interventions import PAIR_HOOK_POINTS
from tdb_server.engine.latent_scalars import error_scalars, latent_scalars
from tdb_server.engine.logit_scalars import logit_scalars, vocabulary_reads
from tdb_server.engine.pair_effects import pair_effects
from tdb_server.engine.product_of_rows import product_at_all_tokens, product_at_directions
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.rows import Rows, axes_of, of_each
from tdb_server.engine.streams import attention_depth, mlp_depth, write_depth
from tdb_server.model.precomputed import value_write_norms


def product_of(rows: Rows, declared: Declaration, pass_type: PassType = PassType.FORWARD) -> Product:
    """A derived scalar of all layers that have it; with the backward pass, the gradients instead."""
    hook_point = declared.hook_point
    if declared.measure is Measure.VOCABULARY_READ:
        return product_at_all_tokens(rows, declared, [Layers([vocabulary_reads(rows)])], declared.dimensions)
    assert hook_point is not None
    if hook_point is HookPoint.LOGITS:
        return logit_scalars(rows, declared, pass_type)
    if is_of_autoencoder(hook_point):
        of_latents = latent_scalars if declared.node_type.is_latent else error_scalars
        return of_latents(rows, declared, hook_point, pass_type)
    if hook_point is HookPoint.ATTN_V_OUT and declared.measure is not Measure.ACTIVATION:
        is_whole = declared.node_type is NodeType.WHOLE_HEAD
        return _of_whole_heads(rows, declared) if is_whole else _of_heads(rows, declared)
    return _of_hook_point(rows, declared, hook_point, pass_type)


def _of_hook_point(rows: Rows, declared: Declaration, hook_point: HookPoint, pass_type: PassType) -> Product:
    """What is measured of each number at a hook point, or of each token's vector there."""
    axes = axes_of(hook_point)
    match declared.measure:
        case Measure.ACTIVATION:
            return _activations(rows, declared, hook_point, pass_type)
        case Measure.ACT_TIMES_GRAD:
            factors = [rows.contrasts(hook_point), rows.gradients(hook_point)]
            return product_at_all_tokens(rows, declared, factors, axes)
        case Measure.WRITE_NORM:
            factors = [rows.values(hook_point), _write_norms(rows, hook_point)]
            scales = rows.write_scales(hook_point)
            if scales is not None:
                is_of_pairs = hook_point in PAIR_HOOK_POINTS
                factors.append(of_each(lambda x: 1 / (x.unsqueeze(-3) if is_of_pairs else x), scales))
            return product_at_all_tokens(rows, declared, factors, axes)
        case Measure.DIRECT_EFFECT:
            if hook_point is not HookPoint.MLP_POST_ACT:
                return product_at_directions(rows, declared, pair_effects(rows), axes)
            values = rows.at_direction_tokens(("writes", hook_point), rows.write_contrasts(hook_point), axes)
            return product_at_directions(rows, declared, [values, _projected_neurons(rows)], axes)
        case Measure.SUMMED_WRITE:
            return product_at_all_tokens(rows, declared, [_summed_writes(rows)], declared.dimensions)
        case Measure.ONE | Measure.VECTOR_NORM | Measure.VECTOR_TIMES_GRAD | Measure.VECTOR_EFFECT:
            return _of_vectors(rows, declared, hook_point)
        case other:
            raise TypeError(f"{hook_point.value}: {other.value} is not computed")


def _activations(rows: Rows, declared: Declaration, hook_point: HookPoint, pass_type: PassType) -> Product:
    is_before = declared.is_previous_layer
    values = rows.before_layers(pass_type) if is_before else rows.values(hook_point, pass_type)
    product = product_at_all_tokens(rows, declared, [values], axes_of(hook_point))
    if pass_type is PassType.FORWARD and hook_point is HookPoint.ATTN_QK_PROBS:
        # Zero where attention may not look; and the first token attends to itself alone, in every head.
        return replace(product, n_ties=rows.model.decoder.config.n_heads)
    if hook_point in PAIR_HOOK_POINTS:
        return replace(
            product,
            not_nodes=rows.model.decoder.hidden_cells(rows.plan.n_tokens, rows.layers)[None, :, None],
        )
    return product


def _write_norms(rows: Rows, hook_point: HookPoint) -> Layers:
    """Norms of what activation 1 of each neuron, or full attention of each head to a token, writes."""
    layers = slice(rows.layers[0], rows.layers[-1] + 1)
    if hook_point is HookPoint.MLP_POST_ACT:
        return Layers.of(rows.precomputed.neuron_write_norms[None, layers, None])  # [1, L, 1, F]
    by_head = rows.model.decoder.blocks[0].attention.by_head
    grams = Layers.of(rows.precomputed.head_write_grams[None, layers])  # [1, L, H, e, e]
    values = rows.values(HookPoint.ATTN_V)

    def norms(v: Tensor, gram: Tensor) -> Tensor:
        return value_write_norms(by_head(v), gram)[..., None, :]  # [..., H, 1, T]

    return rows.once("value norms", lambda: of_each(norms, values, grams))


def _projected_neurons(rows: Rows) -> Layers:
    """Unit writes · directions of interest: of each layer [B, n, F]."""
    return rows.once(
        "projected neurons",
        lambda: Layers(
            [
                block.mlp.write_transposed(rows.seen_by_writes(HookPoint.MLP_POST_ACT, at, mlp_depth(at)))
                for at, block in rows.blocks
            ]
        ),
    )


def _of_heads(rows: Rows, declared: Declaration) -> Product:
    """A head at a token: its node's numbers summed over what it attends to."""
    axes = (Dimension.ATTN_HEADS, Dimension.SEQUENCE_TOKENS)
    pattern = HookPoint.ATTN_QK_PROBS
    match declared.measure:
        case Measure.WRITE_NORM:
            return product_at_all_tokens(rows, declared, _head_write_norms(rows), axes)
        case Measure.ACT_TIMES_GRAD:
            summed = _summed_over_keys([rows.contrasts(pattern), rows.gradients(pattern)])
            return product_at_all_tokens(rows, declared, [summed], axes)
        case Measure.DIRECT_EFFECT:
            return product_at_directions(rows, declared, [_summed_over_keys(pair_effects(rows))], axes)
        case other:
            raise TypeError(f"heads at a token have no {other.value}")


def _head_write_norms(rows: Rows) -> list[Layers]:
    """Norms of what heads write at a token, as factors [B, H, T]."""
    norms = [
        torch.einsum("bhte,hde->bhtd", x, block.attention.out_weights()).norm(dim=-1)
        for x, (_, block) in zip(rows.values(HookPoint.ATTN_V_OUT).tensors, rows.blocks, strict=True)
    ]
    scales = rows.write_scales(HookPoint.ATTN_V_OUT)
    return [Layers(norms), *([] if scales is None else [of_each(lambda x: 1 / x[..., None, :, 0], scales)])]


def _of_whole_heads(rows: Rows, declared: Declaration) -> Product:
    """A head at a token as the vector that it reads from the tokens [B, H, T, e]."""
    axes = (Dimension.ATTN_HEADS, Dimension.SEQUENCE_TOKENS)
    v_out = HookPoint.ATTN_V_OUT
    match declared.measure:
        case Measure.VECTOR_NORM:
            return product_at_all_tokens(rows, declared, _head_write_norms(rows), axes)
        case Measure.VECTOR_TIMES_GRAD:
            found = of_each(_dot, rows.contrasts(v_out), rows.gradients(v_out))
            return product_at_all_tokens(rows, declared, [found], axes)
        case Measure.VECTOR_EFFECT:
            vectors = rows.at_direction_tokens(("writes", v_out), rows.write_contrasts(v_out), axes_of(v_out))
            effects = []
            for x, (layer, block) in zip(vectors.tensors, rows.blocks, strict=True):
                directions = rows.seen_by_writes(v_out, layer, attention_depth(layer))
                seen = block.attention.write_transposed(directions)  # [B, n, H * e]
                by_head = seen.view(*seen.shape[:-1], -1, x.shape[-1]).transpose(-2, -3)
                effects.append(_dot(x, by_head))
            return product_at_directions(rows, declared, [Layers(effects)], axes)
        case Measure.ONE:
            ones = _ones(rows, rows.model.decoder.config.n_heads).transpose(-1, -2)
            return product_at_all_tokens(rows, declared, [Layers([ones] * len(rows.layers))], axes)
        case other:
            raise TypeError(f"whole heads have no {other.value}")


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Products along the last axis."""
    found: Tensor = (x * y).sum(dim=-1)
    return found


def _ones(rows: Rows, width: int) -> Tensor:
    """1 at every token [B, T, width], 0 in padding."""
    ones = rows.cache.final_residual.new_ones(rows.n_rows, rows.plan.n_tokens, width)
    absent = rows.absent_tokens
    return ones if absent is None else ones.masked_fill(absent[..., None], 0)


def _summed_writes(rows: Rows) -> Layers:
    """What all heads together move from token k to token q: of each layer [B, q, k, d]."""
    found = []
    for layer, block in rows.blocks:
        values = block.attention.by_head(rows.at_layer(HookPoint.ATTN_V, layer))
        written = torch.einsum("bhke,hde->bhkd", values, block.attention.out_weights())
        probs = rows.at_layer(HookPoint.ATTN_QK_PROBS, layer)
        summed = torch.einsum("bhqk,bhkd->bqkd", probs, written)
        scale = rows.write_scale(HookPoint.ATTN_QK_PROBS, layer)
        found.append(summed if scale is None else summed / scale[..., None])
    return Layers(found)


def _of_vectors(rows: Rows, declared: Declaration, hook_point: HookPoint) -> Product:
    """One number per token, laid out [B, T, 1]."""
    axes = declared.dimensions
    if declared.measure is Measure.ONE:
        n_layers = len(rows.layers) if declared.is_per_layer else 1
        return product_at_all_tokens(rows, declared, [Layers([_ones(rows, 1)] * n_layers)], axes)
    vectors = rows.values(hook_point)
    if declared.measure is Measure.VECTOR_NORM:
        norms = of_each(lambda x: x.norm(dim=-1, keepdim=True), vectors)
        return product_at_all_tokens(rows, declared, [norms], axes)
    if declared.measure is Measure.VECTOR_TIMES_GRAD:
        contrasts, gradients = rows.contrasts(hook_point), rows.gradients(hook_point)
        found = of_each(lambda x, y: (x * y).sum(dim=-1, keepdim=True), contrasts, gradients)
        return product_at_all_tokens(rows, declared, [found], axes)
    depths = [write_depth(hook_point)(layer) for layer in rows.layers] if declared.is_per_layer else [0]
    at_tokens = rows.at_direction_tokens(("contrasts", hook_point), rows.contrasts(hook_point), axes)
    effects = [
        (x * rows.seen_directions(depth)).sum(dim=-1, keepdim=True)
        for x, depth in zip(at_tokens.tensors, depths, strict=True)
    ]
    return product_at_directions(rows, declared, [Layers(effects)], axes)


def _summed_over_keys(factors: Sequence[Layers]) -> Layers:
    """A product summed over the tokens attended to, layer by layer: [B, H, T]."""
    by_layer = zip(*(one.tensors for one in factors), strict=True)
    return Layers([reduce(torch.mul, own).sum(dim=-1) for own in by_layer])

"""Derived scalars of autoencoder latents, of which only the active ones are touched, and of errors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tdb_server.domain.derived_scalar import Declaration, Measure
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.engine.interventions import Intervention, set_values
from tdb_server.engine.latents import dot_directions
from tdb_server.engine.product_of_rows import product_at_all_tokens, product_at_directions
from tdb_server.engine.products import Layers, Product
from tdb_server.engine.row_latents import row_latents
from tdb_server.engine.rows import Rows, of_each
from tdb_server.engine.streams import latent_depth
from tdb_server.model.autoencoder import Autoencoder


def latent_scalars(rows: Rows, declared: Declaration, hook_point: HookPoint, pass_type: PassType) -> Product:
    """Of latents that are active; every other latent's number is zero."""
    autoencoder, axes = rows.autoencoder(hook_point), declared.dimensions
    ids, values, contrasts, write_contrasts = row_latents(rows, autoencoder)
    key = autoencoder.site
    product = product_at_all_tokens
    match declared.measure:
        case Measure.ACTIVATION if pass_type is PassType.FORWARD:
            factors = [values]
        case Measure.ACTIVATION:
            is_active = of_each(lambda x: x != 0, values)
            if rows.has_baselines:  # in either run
                is_active = of_each(lambda x, y: (x != 0) | (y != 0), values, contrasts)
            factors = [_latent_gradients(rows, autoencoder, ids), is_active]
        case Measure.ACT_TIMES_GRAD:
            factors = [contrasts, _latent_gradients(rows, autoencoder, ids)]
        case Measure.WRITE_NORM:
            factors = [values, _latent_write_norms(rows, autoencoder, ids)]
        case _:
            values = rows.at_direction_tokens((key, "values"), write_contrasts, axes)
            ids = rows.at_direction_tokens((key, "ids"), ids, axes)
            factors = [values, _latent_effects(rows, autoencoder, ids)]
            product = product_at_directions
    made = product(rows, declared, factors, axes)
    return replace(made, ids=ids, n_latents=autoencoder.info.n_latents)


def _latent_gradients(rows: Rows, autoencoder: Autoencoder, ids: Layers) -> Layers:
    """Gradients of the objectives at the active latents: of each layer [B, T, K]."""

    def compute() -> Layers:
        found = []
        for own_ids, (layer_index, layer) in zip(ids.tensors, rows.layers_of(autoencoder), strict=True):
            read = rows.read_by(autoencoder, layer_index)
            at_site = layer.times_write_scale(rows.site_gradient(autoencoder, layer_index), read)
            gradient = dot_directions(layer, own_ids, at_site)
            for one in _set_gradients(rows, autoencoder, layer_index):
                if one.is_of_latents:
                    _set_latent_gradients(gradient, own_ids, one)
            found.append(gradient)
        return Layers(found)

    return rows.once((autoencoder.site, "gradients"), compute)


def _latent_write_norms(rows: Rows, autoencoder: Autoencoder, ids: Layers) -> Layers:
    """Norms of the active latents' unit writes: of each layer [B, T, K]."""
    layers = rows.layers_of(autoencoder)
    scales = {at: rows.write_scale(autoencoder.site.hook_point, at) for at, _ in layers}
    is_fixed = not any(layer.norms_inputs or scales[at] is not None for at, layer in layers)
    if ids.together is not None and is_fixed:
        norms = torch.stack([layer.known_write_norms for _, layer in layers])  # [L, n]
        which = torch.arange(len(layers), device=norms.device)[:, None, None]
        return Layers.of(norms[which, ids.together])
    found = []
    for own_ids, (layer_index, layer) in zip(ids.tensors, layers, strict=True):
        read, scale = rows.read_by(autoencoder, layer_index), scales[layer_index]
        norms = layer.times_write_scale(layer.known_write_norms[own_ids], read)
        found.append(norms if scale is None else norms / scale)
    return Layers(found)


def _latent_effects(rows: Rows, autoencoder: Autoencoder, ids: Layers) -> Layers:
    """The active latents' unit writes · directions of interest: of each layer [B, n, K].

    With baselines, `RowLatents.write_contrasts` has what writes are multiplied with: the prompt's may be 0.
    """
    found = []
    decoder = rows.model.decoder
    for own_ids, (layer_index, layer) in zip(ids.tensors, rows.layers_of(autoencoder), strict=True):
        depth = latent_depth(autoencoder.site, layer_index)
        if rows.has_baselines:
            direction = rows.seen_directions(depth)
        else:
            direction = rows.seen_by_writes(autoencoder.site.hook_point, layer_index, depth)
        direction = autoencoder.as_seen(decoder, layer_index, direction)  # [B, n, s]
        if layer.norms_inputs and not rows.has_baselines:
            read = rows.read_by(autoencoder, layer_index)
            direction = layer.times_write_scale(direction, rows.picked(read, 1))
        found.append(dot_directions(layer, own_ids, direction))
    return Layers(found)


def error_scalars(rows: Rows, declared: Declaration, hook_point: HookPoint, pass_type: PassType) -> Product:
    """What the autoencoder fails to reconstruct [B, T, s], or the gradient at it."""
    autoencoder, is_forward = rows.autoencoder(hook_point), pass_type is PassType.FORWARD
    found = []
    for layer_index, layer in rows.layers_of(autoencoder):
        if is_forward:
            read = rows.read_by(autoencoder, layer_index)
            written = read
            if autoencoder.site is Site.MLP_TRANSCODER:
                written = rows.at_layer(autoencoder.site.hook_point, layer_index)
            error = written - layer.reconstruct(layer.encode(read), read)
        else:
            error = rows.site_gradient(autoencoder, layer_index)
        if is_forward:
            own = [one for one in rows.interventions(autoencoder, layer_index) if one.is_forward]
        else:
            own = _set_gradients(rows, autoencoder, layer_index)
        error = set_values(error, [one for one in own if not one.is_of_latents])
        if rows.absent_tokens is not None:
            error = error.masked_fill(rows.absent_tokens[..., None], 0)
        found.append(error)
    return product_at_all_tokens(rows, declared, [Layers(found)], declared.dimensions)


def _set_gradients(rows: Rows, autoencoder: Autoencoder, layer_index: int) -> list[Intervention]:
    """The gradients that are set at latents and errors, where a row's objective sees what they write."""
    depth = latent_depth(autoencoder.site, layer_index)
    found = [one for one in rows.interventions(autoencoder, layer_index) if not one.is_forward]
    streams = [rows.planned[one.row].stream for one in found]
    return [one for one, seen in zip(found, streams, strict=True) if seen is None or seen.depth >= depth]


def _set_latent_gradients(gradient: Tensor, ids: Tensor, one: Intervention) -> None:
    """Sets gradients at active latents [B, T, K], in place."""
    token, latent = one.ablation.index.tensor_indices
    tokens = slice(0, one.n_tokens) if token is None else slice(token, token + 1)
    own = gradient[one.row, tokens]
    if latent is None:
        own.fill_(one.ablation.value)
    else:
        own.masked_fill_(ids[one.row, tokens] == latent, one.ablation.value)

"""What dictionaries read and write in the plain model's forward pass, with all latents computed densely."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import Site
from tdb_server.domain.requests import AblationSpec
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from torch import Tensor

from tests.property.plain_edits import ablated_latents, add, deviation_of, latents_of, pre_activations_of
from tests.property.plain_model import Edit, PlainModel, Seen, Spot

EMBEDDING = (HookPoint.RESID_POST_EMB, None)


def scalar(site: Site, suffix: str) -> DerivedScalar:
    return DerivedScalar[f"{site.latent_hook_point.name.removesuffix('_LATENT')}_{suffix}"]


def read_by(model: PlainModel, site: Site, seen: Seen, layer: int) -> Tensor:
    """What a dictionary reads [c, T, s]."""
    if site is Site.MLP_TRANSCODER:
        stream, scale = (seen.get(spot) for spot in mlp_reads(model, layer))
        assert stream is not None
        return stream if scale is None else model.centred(stream) / scale
    return side_by_side(site, seen[site.hook_point, layer])


def before_mlp(model: PlainModel, layer: int) -> Spot:
    """The stream that an MLP reads: in parallel blocks, the one before the layer."""
    if not model.is_parallel:
        return HookPoint.RESID_POST_ATTN, layer
    return (HookPoint.RESID_POST_MLP, layer - 1) if layer else EMBEDDING


def mlp_reads(model: PlainModel, layer: int) -> tuple[Spot, Spot]:
    return before_mlp(model, layer), (HookPoint.MLP_LN_SCALE, layer)


def side_by_side(site: Site, x: Tensor) -> Tensor:
    return x.flatten(2) if site is Site.ATTN_V_OUT else x


def dense_latents(layer: AutoencoderLayer, inputs: Tensor) -> Tensor:
    if layer.thresholds is None:
        return latents_of(layer, inputs)
    pre = pre_activations_of(layer, inputs)
    return pre * (pre > layer.thresholds)


def reconstruction_of(layer: AutoencoderLayer, inputs: Tensor) -> Tensor:
    bias = layer.pre_bias if layer.output_bias is None else layer.output_bias
    found = dense_latents(layer, inputs) @ layer.directions + bias
    return found if layer.skip_weight is None else found + inputs @ layer.skip_weight.T


def unit_writes(model: PlainModel, site: Site, layer: int, weights: AutoencoderLayer, seen: Seen) -> Tensor:
    """What each latent adds to the residual stream per unit, at each token [T, n, d]."""
    writes = weights.directions.expand(seen[EMBEDDING].shape[1], -1, -1)
    if weights.norms_inputs:
        writes = writes * deviation_of(read_by(model, site, seen, layer)[0])[:, None]
    if site is Site.ATTN_V_OUT:
        writes = writes @ model.out_weights(layer).flatten(0, 1)
        return writes * behind(model, seen, layer, "attn")[:, None]
    if site is Site.MLP_POST_ACT:
        return writes @ model.mlp_out_weight(layer) * behind(model, seen, layer, "mlp")[:, None]
    return writes


def behind(model: PlainModel, seen: Seen, layer: int, block: str) -> Tensor:
    """What a block's writes are multiplied with behind its output weights [T, d]."""
    factor = torch.as_tensor(model.times_behind(seen, layer, block), dtype=torch.float64)
    return factor.expand(1, seen[EMBEDDING].shape[1], model.d_model)[0]


def setting(model: PlainModel, dictionary: Autoencoder, specs: Sequence[AblationSpec]) -> dict[Spot, Edit]:
    """Edits of the plain forward pass that set latents, or what is not reconstructed."""
    site, edits = dictionary.site, dict[Spot, Edit]()
    for layer_index in {one.index.layer_index for one in specs}:
        assert layer_index is not None
        layer = dictionary.layers[layer_index]
        own = [one for one in specs if one.index.layer_index == layer_index]
        of_latents = [one for one in own if one.index.hook_point is site.latent_hook_point]
        of_errors = [one for one in own if one.index.hook_point is site.error_hook_point]
        seen: Seen = {}

        def keep(spot: Spot, seen: Seen = seen) -> Edit:
            def edit(x: Tensor) -> Tensor:
                seen[spot] = x
                return x

            return edit

        def edit(
            x: Tensor,
            at: int = layer_index,
            seen: Seen = seen,
            layer: AutoencoderLayer = layer,
            of_latents: Sequence[AblationSpec] = of_latents,
            of_errors: Sequence[AblationSpec] = of_errors,
        ) -> Tensor:
            inputs = read_by(model, site, seen | {(site.hook_point, at): x}, at)
            latents = dense_latents(layer, inputs)
            error = side_by_side(site, x) - reconstruction_of(layer, inputs)
            change = (ablated_latents(latents, of_latents) - latents) @ layer.directions
            return x + (change + ablated_latents(error, of_errors) - error).view_as(x)

        for spot in mlp_reads(model, layer_index) if site is Site.MLP_TRANSCODER else ():
            add(edits, spot, keep(spot))
        add(edits, (site.hook_point, layer_index), edit)
    return edits

"""Derived scalars of autoencoder latents: only the active ones are ever touched."""

from __future__ import annotations

from tdb_server.domain.model_info import Site
from tdb_server.domain.node import PassType
from tdb_server.domain.place import PLACE_SHAPES
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.scalars.latents import dot_directions
from tdb_server.scalars.row_run import RowRun, attention_depth, mlp_depth
from tdb_server.scalars.scalar_values import DenseScalars, SparseScalars


def activation(run: RowRun, autoencoder: Autoencoder, layer_index: int) -> SparseScalars:
    """The latents themselves."""
    active = run.latents(autoencoder, layer_index)
    return SparseScalars(active, active.values)


def gradient(run: RowRun, autoencoder: Autoencoder, layer_index: int) -> SparseScalars:
    """Gradient of the objective at the active latents."""
    active = run.latents(autoencoder, layer_index)
    at_site = run.times_write_scale(autoencoder, layer_index, run.site_gradient(autoencoder, layer_index))
    found = dot_directions(autoencoder.layers[layer_index], active, at_site)
    for one in run.latent_ablations(autoencoder, layer_index):
        if not one.is_forward and not one.is_error:
            token, latent = one.spec.index.tensor_indices
            chosen = found.new_ones(found.shape).bool()
            if token is not None:
                chosen &= active.tokens == token
            if latent is not None:
                chosen &= active.latents == latent
            found = found.masked_fill(chosen, one.spec.value)
    return SparseScalars(active, found)


def act_times_grad(run: RowRun, autoencoder: Autoencoder, layer_index: int) -> SparseScalars:
    """Activation × its gradient."""
    found = gradient(run, autoencoder, layer_index)
    return SparseScalars(found.active, found.active.values * found.values)


def write_norm(run: RowRun, autoencoder: Autoencoder, layer_index: int) -> SparseScalars:
    """Activation × norm of the latent's unit write."""
    active, norms = run.latents(autoencoder, layer_index), autoencoder.layers[layer_index].write_norms
    if norms is None:
        raise RuntimeError("write norms are computed when an autoencoder is loaded")
    unit = run.times_write_scale(autoencoder, layer_index, norms[active.latents, None], active.tokens)
    return SparseScalars(active, active.values * unit[:, 0])


def direct_effect(run: RowRun, autoencoder: Autoencoder, layer_index: int) -> SparseScalars:
    """Activation × the unit write projected onto the direction of interest."""
    active = run.latents(autoencoder, layer_index)
    depth = mlp_depth(layer_index) if autoencoder.site.is_mlp else attention_depth(layer_index)
    if depth > run.direction_depth:
        return SparseScalars(active, active.values * 0)
    direction = run.direction
    if autoencoder.site is Site.MLP_POST_ACT:
        direction = direction @ run.decoder.weights.layers[layer_index].mlp_out_weight  # [T, F]
    direction = run.times_write_scale(autoencoder, layer_index, direction)
    return SparseScalars(
        active, active.values * dot_directions(autoencoder.layers[layer_index], active, direction)
    )


def error(run: RowRun, autoencoder: Autoencoder, layer_index: int, pass_type: PassType) -> DenseScalars:
    """What the autoencoder fails to reconstruct [T, s], or the gradient at it."""
    place = autoencoder.site.place
    layer = autoencoder.layers[layer_index]
    ablations = [one for one in run.latent_ablations(autoencoder, layer_index) if one.is_error]
    if pass_type is PassType.FORWARD:
        site = run.value(place, layer_index)
        found = site - layer.reconstruct(layer.encode(site), site)
    else:
        found = run.site_gradient(autoencoder, layer_index).clone()
    for one in ablations:
        if one.spec.index.pass_type is pass_type:
            one.cells.set(found)
    axes = PLACE_SHAPES[place].dimensions
    return DenseScalars((found,), axes, axes, run.n_tokens)

"""Autoencoder latents inside a run: spliced into the forward pass, and read back sparsely.

An autoencoder is spliced in "online" with its error added back, so `site = reconstruction + error` and
nothing changes downstream. That is why the splice costs nothing unless a latent (or the error) is ablated:
then only what differs is added, `(ablated - latent) @ directions` (times the inputs' deviation where they are
layer normed), where gradients flow through the latent as it was, and through the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.domain.node import NodeType, PassType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import AblationSpec
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.scalars.cells import Cells, ablate, override_gradient
from tdb_server.scalars.sampled_products import sampled_products

_PLACES = {  # place: (whether the MLP's, None for whichever is loaded; whether the error)
    Place.ONLINE_AUTOENCODER_LATENT: (None, False),
    Place.ONLINE_MLP_AUTOENCODER_LATENT: (True, False),
    Place.ONLINE_ATTENTION_AUTOENCODER_LATENT: (False, False),
    Place.ONLINE_AUTOENCODER_ERROR: (None, True),
    Place.ONLINE_MLP_AUTOENCODER_ERROR: (True, True),
    Place.ONLINE_ATTENTION_AUTOENCODER_ERROR: (False, True),
}
_NODE_TYPES = {
    NodeType.AUTOENCODER_LATENT: None,
    NodeType.MLP_AUTOENCODER_LATENT: True,
    NodeType.ATTENTION_AUTOENCODER_LATENT: False,
}


def is_autoencoder_place(place: Place) -> bool:
    """Whether the place exists only with an autoencoder."""
    return place in _PLACES


def is_error_place(place: Place) -> bool:
    """Whether the place is what an autoencoder fails to reconstruct."""
    return place in _PLACES and _PLACES[place][1]


def autoencoder_of(named: Place | NodeType, autoencoders: Sequence[Autoencoder]) -> Autoencoder:
    """The loaded autoencoder that a place or a node type means; requests were checked before."""
    is_mlp = _PLACES[named][0] if isinstance(named, Place) else _NODE_TYPES[named]
    return next(one for one in autoencoders if is_mlp is None or one.site.is_mlp == is_mlp)


@dataclass(frozen=True)
class LatentAblation:
    """One ablation of latents or errors, in one row of a batch."""

    row: int
    n_tokens: int
    spec: AblationSpec

    @property
    def cells(self) -> Cells:
        """The cells of the row's own [n_tokens, n_latents or s] tensor."""
        index = tuple(slice(None) if one is None else one for one in self.spec.index.tensor_indices)
        return Cells(index, self.spec.value)

    @property
    def is_error(self) -> bool:
        """Whether the error is ablated rather than latents."""
        return is_error_place(self.spec.index.place)

    @property
    def is_forward(self) -> bool:
        """Whether values are ablated rather than gradients."""
        return self.spec.index.pass_type is PassType.FORWARD


def splice(layer: AutoencoderLayer, x: Tensor, ablations: Sequence[LatentAblation]) -> Tensor:
    """The site's value after latents or errors are ablated: [B, T, s] to [B, T, s]."""
    spliced = x.clone()
    for row in {one.row for one in ablations}:
        of_row = [one for one in ablations if one.row == row]
        n_tokens = of_row[0].n_tokens
        site = x[row, :n_tokens]
        latents = layer.encode(site)
        change = torch.zeros_like(site)
        errors = [one for one in of_row if one.is_error]
        if errors:
            error = site - layer.reconstruct(latents, site)
            change = change + _altered(error, errors) - error
        if len(errors) < len(of_row):
            altered = _altered(latents, [one for one in of_row if not one.is_error])
            change = change + layer.times_write_scale((altered - latents) @ layer.directions, site)
        spliced[row, :n_tokens] = site + change  # not into x, whose values the way back still needs
    return spliced


def _altered(x: Tensor, ablations: Sequence[LatentAblation]) -> Tensor:
    forward = [one.cells for one in ablations if one.is_forward]
    backward = [one.cells for one in ablations if not one.is_forward]
    return override_gradient(ablate(x, forward), backward)


@dataclass(frozen=True)
class SparseLatents:
    """The active latents of one row and layer, ordered by token, then latent.

    Attributes:
        coordinates: (token, latent) of each, int64 [n, 2]; in a stack of layers (layer, token, latent).
        values: their activations, after ablation [n].
        shape: how many there are of each coordinate.
    """

    coordinates: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @property
    def tokens(self) -> Tensor:
        """The token of each [n]."""
        return self.coordinates[:, -2]

    @property
    def latents(self) -> Tensor:
        """The latent of each [n]."""
        return self.coordinates[:, -1]


def encode_sparsely(
    layer: AutoencoderLayer, site: Tensor, ablations: Sequence[LatentAblation]
) -> SparseLatents:
    """The active latents for a row's site values [T, s], ablated ones at their new value."""
    altered = [one.cells for one in ablations if one.is_forward and not one.is_error]
    if not altered and layer.keeps_few:
        kept, latents = layer.largest(layer.pre_activations(site))  # [T, top_k]
        order = latents.argsort(dim=1)
        kept, latents = torch.relu(kept).gather(1, order), latents.gather(1, order)
        tokens, place = kept.nonzero().unbind(1)
        coordinates = torch.stack((tokens, latents[tokens, place]), dim=1)
        return SparseLatents(coordinates, kept[tokens, place], (len(site), len(layer.latent_bias)))
    dense = layer.encode(site)
    for cells in altered:
        cells.set(dense)
    coordinates = dense.nonzero()
    return SparseLatents(coordinates, dense[coordinates.unbind(1)], (dense.shape[0], dense.shape[1]))


def dot_directions(layer: AutoencoderLayer, active: SparseLatents, vectors: Tensor) -> Tensor:
    """For each active latent its direction · its token's vector: vectors [T, s] to [n].

    Few active latents are gathered; many are cheaper as one dense product.
    """
    n_tokens, n_latents = active.shape
    if len(active.values) * 8 > n_tokens * n_latents:
        return (vectors @ layer.directions.T)[active.coordinates.unbind(1)]
    return sampled_products(vectors, layer.directions, active.tokens, active.latents)

"""Sparse autoencoders of one site: directions that stand for a layer's neurons or its attention.

    latents = act(W_enc (x - pre_bias) + latent_bias)
    reconstruction = W_dec latents + pre_bias

or, where inputs are layer normed, with their mean and their standard deviation s over channels

    latents = act(W_enc ((x - mean) / (s + 1e-5) - pre_bias) + latent_bias)
    reconstruction = s (W_dec latents + pre_bias) + mean

so that a latent writes s times its direction. The decoder is stored by rows, one direction per latent, as
almost every use picks the directions of the few latents that are active (Bricken et al. 2023, "Towards
Monosemanticity"; Gao et al. 2024 for TopK and for layer norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import AutoencoderInfo, Site
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import Hooks

_TRIED_TOKENS = 64
INPUT_NORM_EPSILON = 1e-5
"""Added to the standard deviation, not under its root: so do the reference's autoencoders, and SAELens's."""


@dataclass
class AutoencoderLayer:
    """One layer's autoencoder. Shapes: n latents, s site width (d, or F for `mlp_post_act`)."""

    pre_bias: Tensor  # [s]
    encoder_weight: Tensor  # [n, s]
    latent_bias: Tensor  # [n]
    directions: Tensor  # [n, s], rows of W_dec transposed
    top_k: int | None = None  # latents kept per token; None for plain ReLU
    norms_inputs: bool = False  # whether inputs are layer normed
    write_norms: Tensor | None = None  # [n], norm of what latent value 1 adds to the residual stream

    def pre_activations(self, x: Tensor, *, holds_scale: bool = False) -> Tensor:
        """Site values [..., s] to what stands before the nonlinearity [..., n].

        Args:
            holds_scale: whether the scale of normed inputs is a constant in the gradient.
        """
        normed = self.normed(x, holds_scale=holds_scale)
        return F.linear(normed - self.pre_bias, self.encoder_weight, self.latent_bias)

    def normed(self, x: Tensor, *, holds_scale: bool = False) -> Tensor:
        """What the encoder sees of site values [..., s]."""
        if not self.norms_inputs:
            return x
        scale = x.std(dim=-1, keepdim=True) + INPUT_NORM_EPSILON
        return (x - x.mean(dim=-1, keepdim=True)) / (scale.detach() if holds_scale else scale)

    def read_directions(self, latents: Tensor, x: Tensor) -> Tensor:
        """Gradient of pre-activations, each at its own site values, scale held: [m] and [m, s] to [m, s]."""
        rows = self.encoder_weight[latents]
        if not self.norms_inputs:
            return rows
        scale = x.std(dim=-1, keepdim=True) + INPUT_NORM_EPSILON
        return (rows - rows.mean(dim=-1, keepdim=True)) / scale

    def times_write_scale(self, vectors: Tensor, x: Tensor) -> Tensor:
        """What latents write, or what is along it, at site values: [..., m] and [..., s] to [..., m]."""
        return vectors * x.std(dim=-1, keepdim=True) if self.norms_inputs else vectors

    @property
    def known_write_norms(self) -> Tensor:
        """`write_norms`, which are computed when an autoencoder is loaded."""
        if self.write_norms is None:
            raise RuntimeError("write norms are computed when an autoencoder is loaded")
        return self.write_norms

    @property
    def keeps_few(self) -> bool:
        """Whether only the largest latents of each token are kept."""
        return self.top_k is not None and self.top_k < len(self.latent_bias)

    def largest(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """The largest `top_k` of each token, which are kept where they are positive.

        [..., n] to values and latents [..., top_k], largest first.
        """
        assert self.top_k is not None
        found = pre.topk(self.top_k, dim=-1)
        return found.values, found.indices

    def activate(self, pre: Tensor) -> Tensor:
        """ReLU; with TopK, zero for all but the k largest of each token."""
        if not self.keeps_few:
            return torch.relu(pre)
        kept, latents = self.largest(pre)
        return torch.zeros_like(pre).scatter(-1, latents, torch.relu(kept))

    def encode(self, x: Tensor) -> Tensor:
        """Site values [..., s] to latents [..., n]."""
        return self.activate(self.pre_activations(x))

    def reconstruct(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents [..., n] to the site values they stand for [..., s]; x is what they were encoded from."""
        found = self.times_write_scale(latents @ self.directions + self.pre_bias, x)
        return found + x.mean(dim=-1, keepdim=True) if self.norms_inputs else found


@dataclass
class Autoencoder:
    """The autoencoders of one site, by layer."""

    site: Site
    layers: dict[int, AutoencoderLayer]
    n_active: int | None = None  # most latents active at one token in a trial

    @property
    def info(self) -> AutoencoderInfo:
        """Its site and size."""
        first = next(iter(self.layers.values()))
        activation = "relu" if first.top_k is None else f"topk({first.top_k})"
        return AutoencoderInfo(
            self.site,
            len(first.latent_bias),
            tuple(sorted(self.layers)),
            activation,
            self.n_active,
            first.norms_inputs,
        )

    def write_directions(self, decoder: Decoder, layer_index: int, latents: Tensor) -> Tensor:
        """What each latent [m] adds to the residual stream per unit of activation: [m, d]."""
        directions = self.layers[layer_index].directions[latents]
        if self.site is Site.MLP_POST_ACT:
            return decoder.blocks[layer_index].mlp.write(directions)
        return directions

    def compute_write_norms(self, decoder: Decoder, chunk: int = 4096) -> None:
        """Fills in every layer's `write_norms`, a chunk of latents at a time."""
        for layer_index, layer in self.layers.items():
            n_latents = len(layer.latent_bias)
            norms = [
                self.write_directions(
                    decoder,
                    layer_index,
                    torch.arange(start, min(start + chunk, n_latents), device=decoder.device),
                ).norm(dim=-1)
                for start in range(0, n_latents, chunk)
            ]
            layer.write_norms = torch.cat(norms)

    @torch.no_grad()
    def count_active(self, decoder: Decoder) -> None:
        """Fills in `n_active`, over tokens from the whole vocabulary."""
        config = decoder.config
        n_tokens = min(_TRIED_TOKENS, config.context_length, config.vocabulary_size)
        token_ids = torch.linspace(0, config.vocabulary_size - 1, n_tokens, device=decoder.device).long()[
            None
        ]
        found = []

        def hook(hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
            if hook_point is self.site.hook_point and layer_index in self.layers:
                found.append((self.layers[layer_index].encode(x) > 0).sum(dim=-1).amax())
            return x

        decoder.forward(decoder.embed(token_ids), Hooks(hook, frozenset()))
        self.n_active = int(torch.stack(found).amax())

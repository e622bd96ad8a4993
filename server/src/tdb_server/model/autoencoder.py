"""Dictionaries: sparse autoencoders and transcoders of one site.

    latents = act(W_enc (x - pre_bias) + latent_bias)
    reconstruction = W_dec latents + output_bias + W_skip x

An autoencoder reconstructs x itself, without a skip. A transcoder (Dunefsky et al. 2024) reads what the MLP
reads, here always before the gain of its norm, and reconstructs what the MLP adds to the residual stream;
some have a skip. Where an autoencoder's inputs are layer normed, with mean and standard deviation s over
channels,

    latents = act(W_enc ((x - mean) / (s + 1e-5) - pre_bias) + latent_bias)
    reconstruction = s (W_dec latents + output_bias) + mean

so that a latent writes s times its direction.

act is ReLU; or zero for all but the k largest latents of a token (TopK, Gao et al. 2024); or zero up to a
threshold of each latent's own (JumpReLU, Rajamanoharan et al. 2024). What keeps the k largest of a whole
batch in training (BatchTopK, Bussmann et al. 2024) saves a threshold to be used as JumpReLU, and a separate
map that only says whether a latent is active, with tied weights, is a threshold too.

The decoder is stored by rows, one direction per latent, as almost every use picks the directions of the few
latents that are active (Bricken et al. 2023, "Towards Monosemanticity").
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.model_info import AutoencoderInfo, LatentNotes, Site
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import NORM_SCALES, Hooks
from tdb_server.model.mlp_inputs import MlpInputs

_TRIED_TOKENS = 64
INPUT_NORM_EPSILON = 1e-5
"""Added to the standard deviation, not under its root: so do the reference's autoencoders, and SAELens's."""


@dataclass
class AutoencoderLayer:
    """One layer's dictionary. Shapes: n latents, s site width (d; F at `mlp_post_act`, H * e of heads)."""

    pre_bias: Tensor  # [s], subtracted from inputs
    encoder_weight: Tensor  # [n, s]
    latent_bias: Tensor  # [n]
    directions: Tensor  # [n, s], rows of W_dec transposed
    top_k: int | None = None  # latents kept per token; None for all
    norms_inputs: bool = False  # whether inputs are layer normed
    thresholds: Tensor | None = None  # [n], none below 0: what a latent must exceed; None for 0
    output_bias: Tensor | None = None  # [s], added to reconstructions; None for `pre_bias`
    skip_weight: Tensor | None = None  # [s, s], from inputs to reconstructions
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
        """ReLU; with thresholds, zero up to them; with TopK, zero for all but the k largest of each token."""
        if self.thresholds is not None:
            return torch.where(pre > self.thresholds, pre, 0)
        if not self.keeps_few:
            return torch.relu(pre)
        kept, latents = self.largest(pre)
        return torch.zeros_like(pre).scatter(-1, latents, torch.relu(kept))

    def encode(self, x: Tensor) -> Tensor:
        """Site values [..., s] to latents [..., n]."""
        return self.activate(self.pre_activations(x))

    def reconstruct(self, latents: Tensor, x: Tensor) -> Tensor:
        """Latents [..., n] to the site values they stand for [..., s]; x is what they were encoded from."""
        bias = self.pre_bias if self.output_bias is None else self.output_bias
        found = self.times_write_scale(latents @ self.directions + bias, x)
        if self.skip_weight is not None:
            found = found + F.linear(x, self.skip_weight)
        return found + x.mean(dim=-1, keepdim=True) if self.norms_inputs else found

    @property
    def activation(self) -> str:
        """How latents are made, for people."""
        if self.top_k is not None:
            return f"topk({self.top_k})"
        return "relu" if self.thresholds is None else "jumprelu"

    def moved(self, device: torch.device, dtype: torch.dtype) -> AutoencoderLayer:
        """The same on a device, in a type."""
        tensors = {
            field.name: value.to(device, dtype)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **tensors)  # type: ignore[arg-type]


@dataclass
class Autoencoder:
    """The dictionaries of one site, by layer."""

    site: Site
    layers: dict[int, AutoencoderLayer]
    n_active: int | None = None  # most latents active at one token in a trial
    notes: tuple[LatentNotes, ...] = ()  # what people have said of latents, by layer

    @property
    def info(self) -> AutoencoderInfo:
        """Its site and size."""
        first = next(iter(self.layers.values()))
        return AutoencoderInfo(
            self.site,
            len(first.latent_bias),
            tuple(sorted(self.layers)),
            first.activation,
            self.n_active,
            first.norms_inputs,
            self.notes,
        )

    def write_directions(self, decoder: Decoder, layer_index: int, latents: Tensor) -> Tensor:
        """What each latent [m] adds to the residual stream per unit of activation: [m, d]."""
        directions = self.layers[layer_index].directions[latents]
        if self.site is Site.MLP_POST_ACT:
            return decoder.blocks[layer_index].mlp.write(directions)
        if self.site is Site.ATTN_V_OUT:
            return decoder.blocks[layer_index].attention.write(directions)
        return directions

    def side_by_side(self, x: Tensor) -> Tensor:
        """What a hook point has, as the dictionary sees it [B, T, s]: heads [B, H, T, e] side by side."""
        return x.transpose(1, 2).flatten(2) if self.site is Site.ATTN_V_OUT else x

    def read_in_pass(self, layer_index: int, site: Tensor, mlp_inputs: MlpInputs) -> Tensor:
        """What it reads [B, T, s], given what its site has, side by side: a transcoder, what its MLP read."""
        return mlp_inputs.of_layer(layer_index) if self.site is Site.MLP_TRANSCODER else site

    def as_at_hook_point(self, x: Tensor, like: Tensor) -> Tensor:
        """The way back: [B, T, s] to what the hook point has."""
        if self.site is not Site.ATTN_V_OUT:
            return x
        return x.view(*x.shape[:2], like.shape[1], -1).transpose(1, 2)

    def recomputed_inputs(self, decoder: Decoder, layer_index: int, residual: Tensor) -> Tensor:
        """What is read, made from the residual stream before the block, with the norm's scale held.

        Args:
            residual: [m, d]; at attention's sites of all tokens [m, T, d]; where the stream itself is read,
                that stream.

        Returns:
            [m, s] or [m, T, s].
        """
        block = decoder.blocks[layer_index]
        if self.site.is_stream:
            return residual
        if self.site is Site.MLP_TRANSCODER:
            norm = block.mlp.norm
            return norm.centered(residual) / norm.scale(residual).detach()
        found: list[Tensor] = []

        def hook(hook_point: HookPoint, _: int | None, x: Tensor) -> Tensor:
            if hook_point is self.site.hook_point:
                found.append(x)
            return x.detach() if hook_point in NORM_SCALES else x

        output = (block.attention if self.site.is_attention else block.mlp)(
            residual, Hooks(hook, NORM_SCALES)
        )
        return self.side_by_side(found[0] if found else output)

    def as_seen(self, decoder: Decoder, layer_index: int, directions: Tensor) -> Tensor:
        """Directions of the residual stream [..., d] as seen from the site [..., s]."""
        block = decoder.blocks[layer_index]
        if self.site is Site.MLP_POST_ACT:
            return block.mlp.write_transposed(directions)
        return block.attention.write_transposed(directions) if self.site is Site.ATTN_V_OUT else directions

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
        token_ids = torch.linspace(0, config.vocabulary_size - 1, n_tokens, device=decoder.device).long()
        mlp_inputs = MlpInputs(decoder)
        found = []

        def hook(hook_point: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
            mlp_inputs.see(hook_point, x)
            if layer_index in self.layers and hook_point is self.site.hook_point:
                read = self.read_in_pass(layer_index, self.side_by_side(x), mlp_inputs)
                found.append((self.layers[layer_index].encode(read) > 0).sum(dim=-1).amax())
            return x

        decoder.forward(decoder.embed(token_ids[None]), Hooks(hook, NORM_SCALES))
        self.n_active = int(torch.stack(found).amax())

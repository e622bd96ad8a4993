"""Blocks' maps and their transposes, applied to nodes of many layers at once.

A component writes along a vector, and reads along the gradient of its pre-activation at the residual stream
just before its block, with the norm's scale held constant. What is small is done for the nodes of all layers
together; products with weights, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.domain.model_info import Site
from tdb_server.model.autoencoder import Autoencoder
from tdb_server.model.decoder import Block, Decoder
from tdb_server.model.precomputed import Precomputed


@dataclass(frozen=True)
class InLayers:
    """The layers of some nodes, which are in the order of layers.

    Attributes:
        layers: of each node [m].
        spans: by layer, which of the nodes are there.
    """

    layers: Tensor
    spans: Sequence[tuple[int, slice]]

    def of_each(self, decoder: Decoder, compute: Callable[[Block, slice], Tensor]) -> Tensor:
        """Something of the nodes of each layer, joined."""
        found = [compute(decoder.blocks[layer], span) for layer, span in self.spans]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-2)


# Writing


def neuron_writes(decoder: Decoder, where: InLayers, neurons: Tensor) -> Tensor:
    """What neurons [m] write per unit of activation [m, d]."""
    return where.of_each(decoder, lambda block, span: block.mlp.unit_writes(neurons[span]))


def latent_writes(decoder: Decoder, autoencoder: Autoencoder, where: InLayers, latents: Tensor) -> Tensor:
    """What latents [m] write per unit of activation [m, d]."""
    return where.of_each(
        decoder, lambda block, span: autoencoder.write_directions(decoder, block.layer_index, latents[span])
    )


def head_writes(decoder: Decoder, where: InLayers, heads: Tensor, values: Tensor) -> Tensor:
    """What heads [m] write of values, or of sums of them [m, e]: [m, d]."""
    slices = _in_slices(values, heads, decoder.config.n_heads)
    return where.of_each(decoder, lambda block, span: block.attention.write(slices[span]))


# Reading: vectors, each still to be divided by its scale, [m, d] and [m]


def neuron_reads(
    decoder: Decoder, precomputed: Precomputed, where: InLayers, neurons: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    """Of neurons [m], each of the residual stream before its MLP [m, d].

    Of gated neurons the activation, gate and up together, is what is differentiated.
    """
    norm = decoder.blocks[0].mlp.norm
    if decoder.neurons_read_alike:
        vectors = fixed_neuron_reads(decoder, precomputed, where, neurons)
    else:
        hidden = where.of_each(
            decoder, lambda block, span: block.mlp.read(residual[span], neurons[span])[..., None]
        )[..., 0]
        at_hidden = gradient_of(decoder.blocks[0].mlp.after_reading, hidden)
        weights = where.of_each(decoder, lambda block, span: block.mlp.read_weights(neurons[span]))
        vectors = (at_hidden[:, :, None] * weights).sum(dim=0)
        vectors = norm.centered(vectors * precomputed.mlp_gains[where.layers])
    return vectors, neuron_read_scales(decoder, residual)


def neuron_read_scales(decoder: Decoder, residual: Tensor) -> Tensor:
    """What read directions of neurons are divided by, each of the stream before its MLP: [m, d] to [m]."""
    return decoder.blocks[0].mlp.norm.scale(residual)[:, 0]


def fixed_neuron_reads(
    decoder: Decoder, precomputed: Precomputed, where: InLayers, neurons: Tensor
) -> Tensor:
    """What neurons that read alike at all tokens read along [m, d]."""
    weights = where.of_each(decoder, lambda block, span: block.mlp.read_weights(neurons[span]))
    return decoder.blocks[0].mlp.norm.centered(weights * precomputed.mlp_gains[where.layers])


def latent_reads(
    decoder: Decoder,
    precomputed: Precomputed,
    autoencoder: Autoencoder,
    where: InLayers,
    latents: Tensor,
    residual: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of latents [m] of the MLP's dictionary, each of the residual stream before its MLP [m, d].

    Back through the encoder, the MLP's output weights where the site is behind them, the nonlinearity and the
    input weights.
    """
    mlp = decoder.blocks[0].mlp
    scale = mlp.norm.scale(residual)
    if autoencoder.site is Site.MLP_TRANSCODER:
        reads = where.of_each(
            decoder, lambda block, span: autoencoder.layers[block.layer_index].encoder_weight[latents[span]]
        )
        return mlp.norm.centered(reads), scale[:, 0]
    normed = mlp.norm.centered(residual) / scale * precomputed.mlp_gains[where.layers]
    if precomputed.mlp_biases is not None:
        normed = normed + precomputed.mlp_biases[where.layers]
    hidden = where.of_each(decoder, lambda block, span: block.mlp.hidden(normed[span]))
    is_behind = autoencoder.site is not Site.MLP_POST_ACT

    def at_post_act(block: Block, span: slice) -> Tensor:
        layer, own, post_norm = autoencoder.layers[block.layer_index], latents[span], block.mlp.post_norm
        if not layer.norms_inputs and (not is_behind or post_norm.weights is None):
            reads = layer.read_directions(own, normed[span])
            return block.mlp.write_transposed(reads) if is_behind else reads
        post_act = block.mlp.after_hidden(hidden[span])
        if not is_behind:
            return layer.read_directions(own, post_act)
        written = block.mlp.written(post_act)
        post_scale = post_norm.scale(written)
        reads = layer.read_directions(own, post_norm.normalize(written, post_scale))
        return block.mlp.write_transposed(reads / post_scale)

    reads = where.of_each(decoder, at_post_act)  # [m, F]
    at_hidden = gradient_of(lambda x: (mlp.after_hidden(x) * reads).sum(dim=-1), hidden)
    vectors = where.of_each(decoder, lambda block, span: block.mlp.read_transposed(at_hidden[span]))
    return mlp.norm.centered(vectors * precomputed.mlp_gains[where.layers]), scale[:, 0]


@dataclass(frozen=True)
class HeadNodes:
    """Heads `(q, k, h)` that are read through their query or through their key, m of them.

    Attributes:
        tokens: that are read: of queries q, of keys k.
        heads: the query heads, or behind all of them the key heads, that read.
        others: the keys that queries are multiplied with, and the other way round [m, e].
        residual: the residual stream before the layer, at the tokens [m, d].
    """

    tokens: Tensor
    heads: Tensor
    others: Tensor
    residual: Tensor


def head_reads(
    decoder: Decoder, precomputed: Precomputed, where: InLayers, nodes: HeadNodes
) -> tuple[Tensor, Tensor]:
    """Gradients of attention logits through the query at token q, or the key at token k.

    Without rotation they depend on the other token and the head alone, up to the norm's scale.
    """
    config, first = decoder.config, decoder.blocks[0].attention
    slices = None
    if decoder.heads_read_alike:
        turned = first.turned_back(nodes.others, nodes.tokens)
        slices = _in_slices(turned, nodes.heads, config.n_heads + 2 * config.n_key_value_heads)

    def read(block: Block, span: slice) -> Tensor:
        """Back through the weights of queries and keys."""
        attention = block.attention
        if slices is not None:
            return attention.read_transposed(slices[span])
        heads, tokens, others = nodes.heads[span], nodes.tokens[span], nodes.others[span]
        products = attention.products(nodes.residual[span])
        return attention.read_transposed(
            gradient_of(lambda x: attention.logits_of(x, heads, tokens, others), products)
        )

    vectors = first.norm.centered(where.of_each(decoder, read) * precomputed.attention_gains[where.layers])
    return vectors, first.norm.scale(nodes.residual)[:, 0]


def gradient_of(objectives: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Each node's gradient of its own objective, for all of them together: [.., m, ..] to the same."""
    with torch.enable_grad():
        x = at.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objectives(x).sum(), x)
    return gradient


def _in_slices(x: Tensor, head: Tensor, n_heads: int) -> Tensor:
    """Vectors of one head each, in that head's slice of all heads' channels: [m, e] to [m, n_heads * e].

    One product with all heads' weights is cheaper than to pick each vector's own.
    """
    slices = x.new_zeros(len(x), n_heads, x.shape[1])
    index = head[:, None, None].expand(-1, 1, x.shape[1])
    return slices.scatter_(1, index, x[:, None]).flatten(1)

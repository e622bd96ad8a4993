"""The directions of input tokens that nodes read along.

A node's read direction is the gradient of its pre-activation at the residual stream just before its block, at
its own token, with the norm's scale held constant. It leads through a nonlinearity or two that look at a few
numbers of each node, and through the block's weights. What is small is done for all layers at once; the
weights, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.node import NodeType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import TokenScoringType
from tdb_server.scalars import heads, neurons
from tdb_server.scalars.directions import Directions, LayerNodes, joined
from tdb_server.scalars.objectives import latent_pre_activations, mlp_site
from tdb_server.scalars.row_run import RowRun


def read_directions(run: RowRun, layers: Sequence[LayerNodes], scoring: TokenScoringType) -> Directions:
    """Read directions of the nodes that have one of this kind."""
    layers = [one for one in layers if one.layer_index is not None]
    if scoring is not TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_MLP:
        pairs = [
            one for one in layers if one.node_type is NodeType.ATTENTION_HEAD and one.indices.shape[1] == 3
        ]
        through_query = scoring is TokenScoringType.INPUT_TOKENS_THAT_UPVOTE_ATTN_Q
        return joined(run, _head_reads(run, pairs, through_query))
    of_neurons = [one for one in layers if one.node_type is NodeType.MLP_NEURON]
    latents = [
        one
        for one in layers
        if one.node_type.is_latent and run.autoencoder_of_node(one.node_type).site.is_mlp
    ]
    neuron_reads = _gated_reads if run.decoder.config.gated else _plain_reads
    return joined(run, [*neuron_reads(run, of_neurons), *(_latent_reads(run, one) for one in latents)])


def _plain_reads(run: RowRun, layers: Sequence[LayerNodes]) -> list[Directions]:
    """Of neurons without gates: only the scale depends on the token, through the norm."""
    if not layers:
        return []
    decoder = run.decoder
    residuals = [run.value(Place.RESID_POST_ATTN, one.layer_index)[one.indices[:, 0]] for one in layers]
    weights = [neurons.read_weights(decoder, _layer_index(one), one.indices[:, 1]) for one in layers]
    positions = [position for one in layers for position in one.positions]
    scales = decoder.norm_scale(torch.cat(residuals))[:, 0]
    return [Directions(positions, decoder.centered(torch.cat(weights)), 1 / scales)]


def _gated_reads(run: RowRun, layers: Sequence[LayerNodes]) -> list[Directions]:
    """Of gated neurons: the activation, gate and up together, is what is differentiated."""
    if not layers:
        return []
    decoder, n_neurons = run.decoder, run.decoder.config.n_neurons
    scales, weights, hidden = [], [], []
    for nodes in layers:
        tokens, which = nodes.indices.unbind(1)
        layer = decoder.weights.layers[_layer_index(nodes)]
        residual = run.value(Place.RESID_POST_ATTN, nodes.layer_index)[tokens]
        scales.append(decoder.norm_scale(residual))
        normed = decoder.normalize(residual, scales[-1], layer.mlp_norm)  # [m, d]
        rows = torch.stack((which, which + n_neurons))
        weights.append(layer.mlp_in_weight[rows])  # [2, m, d]: gate and up
        hidden.append((weights[-1] * normed).sum(dim=2))  # [2, m]
        if layer.mlp_in_bias is not None:
            hidden[-1] += layer.mlp_in_bias[rows]
    at_hidden = _gradient(lambda x: decoder.activate(x[0]) * x[1], torch.cat(hidden, dim=1))
    found = []
    parts = torch.split(at_hidden, [len(one.positions) for one in layers], dim=1)
    for nodes, part, weight, scale in zip(layers, parts, weights, scales, strict=True):
        gain = decoder.weights.layers[_layer_index(nodes)].mlp_norm.gain
        vectors = decoder.centered((part[:, :, None] * weight).sum(dim=0) * gain)
        found.append(Directions(nodes.positions, vectors, 1 / scale[:, 0]))
    return found


def _latent_reads(run: RowRun, nodes: LayerNodes) -> Directions:
    autoencoder, layer_index = run.autoencoder_of_node(nodes.node_type), _layer_index(nodes)
    layer = autoencoder.layers[layer_index]
    tokens, latents = nodes.indices.unbind(1)

    def pre_activations(x: Tensor) -> Tensor:
        return latent_pre_activations(layer, mlp_site(run.decoder, autoencoder, layer_index, x), latents)

    vectors = _gradient(pre_activations, run.value(Place.RESID_POST_ATTN, layer_index)[tokens])
    return Directions(nodes.positions, vectors, torch.ones_like(vectors[:, 0]))


@dataclass(frozen=True)
class _HeadRead:
    """What some head nodes of one layer read with, through their queries or their keys.

    Attributes:
        tokens: that are read [m].
        head: the query head, or the group of the key [m].
        other: the key or query on the other side [m, e].
        product: the query or key before it is normed, rotated and scaled [m, e].
        head_norm: gain of that norm [e], where there is one.
        weight: what makes queries, or keys, of all heads [heads * e, d].
        gain: of the layer's norm [d].
        residual: what is normed, at the tokens [m, d].
    """

    tokens: Tensor
    head: Tensor
    other: Tensor
    product: Tensor
    head_norm: Tensor | None
    weight: Tensor
    gain: Tensor
    residual: Tensor


def _head_reads(run: RowRun, layers: Sequence[LayerNodes], through_query: bool) -> list[Directions]:
    """Gradient of the attention logit through the query at token q, or the key at token k.

    Without rotation it depends on the other token and the head alone, up to the norm's scale.
    """
    if not layers:
        return []
    decoder = run.decoder
    reads = [_head_read(run, one, through_query) for one in layers]
    tokens, other = torch.cat([one.tokens for one in reads]), torch.cat([one.other for one in reads])
    norms = [one.head_norm.expand_as(one.product) for one in reads if one.head_norm is not None]
    head_norm = torch.cat(norms) if norms else None

    def logits(x: Tensor) -> Tensor:
        return (decoder.place_heads(x[None, None], head_norm, tokens)[0, 0] * other).sum(dim=-1)

    at_heads = _gradient(logits, torch.cat([one.product for one in reads]))  # [m, e]
    n_heads = len(reads[0].weight) // at_heads.shape[1]
    slices = heads.in_slices(at_heads, torch.cat([one.head for one in reads]), n_heads)
    parts = torch.split(slices, [len(one.tokens) for one in reads])
    vectors = [part @ read.weight * read.gain for read, part in zip(reads, parts, strict=True)]
    positions = [position for one in layers for position in one.positions]
    scales = decoder.norm_scale(torch.cat([one.residual for one in reads]))[:, 0]
    return [Directions(positions, decoder.centered(torch.cat(vectors)), 1 / scales)]


def _head_read(run: RowRun, nodes: LayerNodes, through_query: bool) -> _HeadRead:
    config, layer_index = run.decoder.config, _layer_index(nodes)
    layer = run.decoder.weights.layers[layer_index]
    query, key, head = nodes.indices.unbind(1)
    group = head // config.n_heads_per_group
    first_key_row = config.n_heads * config.d_head
    if through_query:
        tokens, own_head, head_norm, rows = query, head, layer.q_norm, slice(0, first_key_row)
        other = run.value(Place.ATTN_K, layer_index)[group, key]
    else:
        n_key_rows = config.n_key_value_heads * config.d_head
        tokens, own_head, head_norm = key, group, layer.k_norm
        rows = slice(first_key_row, first_key_row + n_key_rows)
        other = run.value(Place.ATTN_Q, layer_index)[head, query]
    before = (Place.RESID_POST_EMB, None) if layer_index == 0 else (Place.RESID_POST_MLP, layer_index - 1)
    residual = run.value(*before)[tokens]
    product = torch.zeros_like(other)  # where there is no head norm, the gradient is the same everywhere
    if head_norm is not None:
        normed = run.decoder.normalize(residual, run.decoder.norm_scale(residual), layer.attn_norm)
        bias = None if layer.qkv_bias is None else layer.qkv_bias[rows]
        products = F.linear(normed, layer.qkv_weight[rows], bias).view(len(other), -1, other.shape[1])
        product = products[torch.arange(len(products)), own_head]
    return _HeadRead(
        tokens, own_head, other, product, head_norm, layer.qkv_weight[rows], layer.attn_norm.gain, residual
    )


def _gradient(objectives: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Each node's gradient of its own objective, for all of them together: [.., m, ..] to the same."""
    with torch.enable_grad():
        x = at.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objectives(x).sum(), x)
    return gradient


def _layer_index(nodes: LayerNodes) -> int:
    assert nodes.layer_index is not None
    return nodes.layer_index

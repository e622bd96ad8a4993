"""Objectives: what the backward pass starts from, one number per row.

A loss is a function of the last token's logits. A trace makes a node the objective: its pre-activation is
recomputed from the residual stream just before its block, with the norm's scale held constant, so that the
gradient at that residual stream is the node's own read direction (SEMANTICS section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tdb_server.domain.node import NodeType
from tdb_server.domain.place import Place
from tdb_server.domain.requests import AttentionTraceType, LossConfig, LossName, Trace
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import NORM_SCALES, Decoder, Tap
from tdb_server.scalars.latents import autoencoder_of


def _hold_norm_scale(place: Place, layer_index: int | None, x: Tensor) -> Tensor:
    return x.detach() if place in NORM_SCALES else x


HOLD_NORM_SCALES = Tap(_hold_norm_scale)
"""A tap under which norm scales are constants."""


def loss(config: LossConfig, logits: Tensor) -> Tensor:
    """The loss of the last token's logits [V]: a scalar."""
    targets, distractors = list(config.target_tokens), list(config.distractor_tokens)
    match config.name:
        case LossName.LOGIT_DIFF:
            difference = logits[targets].mean()
            return difference - logits[distractors].mean() if distractors else difference
        case LossName.LOGIT_MINUS_MEAN:
            return logits[targets].mean() - logits.mean()
        case LossName.PROBS:
            wide = logits if logits.dtype == torch.float64 else logits.float()
            return torch.softmax(wide, dim=-1)[targets].sum().to(logits.dtype)
        case LossName.ZERO:
            return (logits * 0).sum()


def loss_direction(decoder: Decoder, config: LossConfig, residual: Tensor) -> Tensor:
    """Gradient of the loss at the last residual stream [T, d], final norm's scale held constant: [T, d]."""
    with torch.enable_grad():
        last = residual[-1].detach().requires_grad_()
        value = loss(config, decoder.logits(last, HOLD_NORM_SCALES))
        (gradient,) = torch.autograd.grad(value, last)
    direction = torch.zeros_like(residual)
    direction[-1] = gradient
    return direction


Spot = tuple[Place, int | None]
"""A place in a layer."""


def trace_place(trace: Trace) -> Spot:
    """The residual stream a trace starts from: before the MLP, or before the layer for attention."""
    layer_index = trace.node.layer_index
    assert layer_index is not None
    if trace.node.node_type in (NodeType.ATTENTION_HEAD, NodeType.ATTENTION_AUTOENCODER_LATENT):
        return (Place.RESID_POST_EMB, None) if layer_index == 0 else (Place.RESID_POST_MLP, layer_index - 1)
    return Place.RESID_POST_ATTN, layer_index


def specific_trace(trace: Trace, autoencoders: Sequence[Autoencoder]) -> Trace:
    """The trace with "whichever autoencoder is loaded" spelled out."""
    node, downstream = trace.node, trace.downstream
    if node.node_type is NodeType.AUTOENCODER_LATENT:
        site = autoencoder_of(node.node_type, autoencoders).site
        node = type(node)(site.node_type, node.layer_index, node.tensor_indices, node.pass_type)
    if downstream is not None:
        downstream = specific_trace(downstream, autoencoders)
    return Trace(node, trace.attention_trace_type, trace.post_act, downstream)


def traced_value(
    decoder: Decoder,
    autoencoders: Sequence[Autoencoder],
    trace: Trace,
    residual: Tensor,
    probs: Tensor | None = None,
    direction: Tensor | None = None,
) -> Tensor:
    """The traced objective, a scalar, as a function of the residual stream before the node [T, d].

    Args:
        probs: for V, the attention of the node `attn(q, k, h)`, a constant scalar.
        direction: for V, where the value's write is projected [T, d].
    """
    node, layer_index = trace.node, trace.node.layer_index
    assert layer_index is not None
    token, *_, index = node.tensor_indices
    match node.node_type:
        case NodeType.MLP_NEURON:
            at_token = residual[token : token + 1]
            return neuron_objectives(decoder, layer_index, at_token, torch.tensor([index]), trace.post_act)[0]
        case NodeType.MLP_AUTOENCODER_LATENT:
            autoencoder = autoencoder_of(node.node_type, autoencoders)
            site = mlp_site(decoder, autoencoder, layer_index, residual[token : token + 1])[0]
            return _latent_objective(autoencoder.layers[layer_index], site, index, trace.post_act)
        case NodeType.ATTENTION_AUTOENCODER_LATENT:
            autoencoder = autoencoder_of(node.node_type, autoencoders)
            site = decoder.attention(layer_index, residual[None], HOLD_NORM_SCALES)[0, token]
            return _latent_objective(autoencoder.layers[layer_index], site, index, trace.post_act)
        case NodeType.ATTENTION_HEAD if trace.attention_trace_type is AttentionTraceType.V:
            assert probs is not None
            assert direction is not None
            return probs * _value_write(decoder, layer_index, node.tensor_indices, residual, direction)
        case _:
            return _attention_logit(decoder, trace, residual)


def neuron_objectives(
    decoder: Decoder, layer_index: int, residual: Tensor, neurons: Tensor, post_act: bool = False
) -> Tensor:
    """Pre-activations of m neurons, each at its own token: residual [m, d] and neurons [m] to [m].

    A gated neuron has no single pre-activation: its objective is its activation, gate and up together.
    """
    layer = decoder.weights.layers[layer_index]
    scale = decoder.norm_scale(residual).detach()
    normed = decoder.normalize(residual, scale, layer.mlp_norm)

    def hidden(rows: Tensor) -> Tensor:
        value = torch.einsum("md,md->m", normed, layer.mlp_in_weight[rows])
        return value if layer.mlp_in_bias is None else value + layer.mlp_in_bias[rows]

    neurons = neurons.to(residual.device)
    if decoder.config.gated:
        return decoder.activate(hidden(neurons)) * hidden(neurons + decoder.config.n_neurons)
    return decoder.activate(hidden(neurons)) if post_act else hidden(neurons)


def mlp_site(decoder: Decoder, autoencoder: Autoencoder, layer_index: int, residual: Tensor) -> Tensor:
    """The MLP autoencoder's site, recomputed at m tokens: residual [m, d] to [m, s]."""
    site = autoencoder.site.place
    found: list[Tensor] = []

    def look(place: Place, layer: int | None, x: Tensor) -> Tensor:
        if place is site:
            found.append(x)
        return _hold_norm_scale(place, layer, x)

    output = decoder.mlp(layer_index, residual, Tap(look))
    return found[0] if found else output


def _latent_objective(layer: AutoencoderLayer, site: Tensor, latent: int, post_act: bool) -> Tensor:
    if post_act:
        return layer.activate(layer.pre_activations(site, holds_scale=True))[latent]
    return latent_pre_activations(layer, site[None], torch.tensor([latent]))[0]


def latent_pre_activations(layer: AutoencoderLayer, site: Tensor, latents: Tensor) -> Tensor:
    """Pre-activations of m latents, each of its own site values: [m, s] and [m] to [m].

    The scale of normed inputs is held constant, like that of the model's own norms.
    """
    latents = latents.to(site.device)
    weights, inputs = layer.encoder_weight[latents], layer.normed(site, holds_scale=True) - layer.pre_bias
    return torch.einsum("ms,ms->m", inputs, weights) + layer.latent_bias[latents]


def _value_write(
    decoder: Decoder, layer_index: int, indices: tuple[int, ...], residual: Tensor, direction: Tensor
) -> Tensor:
    """`(v(k, h) W_O[h]) · direction(q)`, the gradient through the value alone."""
    query, key, head = indices
    layer, d_head = decoder.weights.layers[layer_index], decoder.config.d_head
    normed = decoder.normalize(residual[None], decoder.norm_scale(residual[None]).detach(), layer.attn_norm)
    _, _, values = decoder.queries_keys_values(layer_index, normed)
    value = values[0, head // decoder.config.n_heads_per_group, key]
    out_weight = layer.attn_out_weight[:, head * d_head : (head + 1) * d_head]  # [d, e]
    return value @ (direction[query] @ out_weight)


def _attention_logit(decoder: Decoder, trace: Trace, residual: Tensor) -> Tensor:
    """The head's attention logit (or attention, post-activation) through its query, its key or both."""
    query, key, head = trace.node.tensor_indices
    layer_index = trace.node.layer_index
    assert layer_index is not None
    layer = decoder.weights.layers[layer_index]
    normed = decoder.normalize(residual[None], decoder.norm_scale(residual[None]).detach(), layer.attn_norm)
    queries, keys, _ = decoder.queries_keys_values(layer_index, normed)
    q = queries[0, head, query]  # [e]
    k = keys[0, head // decoder.config.n_heads_per_group]  # [T, e]
    if trace.attention_trace_type is AttentionTraceType.Q:
        k = k.detach()
    if trace.attention_trace_type is AttentionTraceType.K:
        q = q.detach()
    logits = k @ q  # [T]
    if trace.post_act:
        masked = decoder.mask(len(residual))[query]
        return torch.softmax(logits.masked_fill(masked, -torch.inf), dim=-1)[key]
    return logits[key]

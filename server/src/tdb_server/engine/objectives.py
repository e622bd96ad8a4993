"""Objectives: what the backward pass starts from, one number per row.

A loss is a function of the last token's logits. A trace makes a node the objective: its pre-activation is
recomputed from the residual stream just before its block, with the norm's scale held constant, so that the
gradient at that residual stream is the node's own read direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AttentionTraceType, LossConfig, LossName, Trace
from tdb_server.engine.plan import autoencoder_of
from tdb_server.engine.transfers import Array
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Decoder, wide
from tdb_server.model.hooks import HOLD_NORM_SCALES, NORM_SCALES, Hooks


@dataclass(frozen=True)
class LossTerms:
    """Losses of m rows as weighted sums, ready for upload.

    Attributes:
        tokens: vocabulary tokens that each row looks at [m, n], padded.
        of_logits: what their logits are multiplied with [m, n].
        of_probabilities: what their probabilities are multiplied with [m, n].
        of_mean: what the mean of all logits is multiplied with [m].
    """

    tokens: Array
    of_logits: Array
    of_probabilities: Array
    of_mean: Array

    @property
    def arrays(self) -> list[Array]:
        """All of them."""
        return [self.tokens, self.of_logits, self.of_probabilities, self.of_mean]


def loss_terms(losses: Sequence[LossConfig | None]) -> LossTerms:
    """The losses of rows; where a row has none, zeros."""
    width = max([1, *(len(one.target_tokens) + len(one.distractor_tokens) for one in losses if one)])
    tokens = np.zeros((len(losses), width), np.int64)
    of_logits, of_probabilities = np.zeros(tokens.shape), np.zeros(tokens.shape)
    of_mean = np.zeros(len(losses))
    for row, config in enumerate(losses):
        if config is None or config.name is LossName.ZERO:
            continue
        targets, distractors = config.target_tokens, config.distractor_tokens
        tokens[row, : len(targets) + len(distractors)] = [*targets, *distractors]
        if config.name is LossName.PROBS:
            of_probabilities[row, : len(targets)] = 1
            continue
        of_logits[row, : len(targets)] = 1 / len(targets)
        if config.name is LossName.LOGIT_MINUS_MEAN:
            of_mean[row] = -1
        elif distractors:
            of_logits[row, len(targets) : len(targets) + len(distractors)] = -1 / len(distractors)
    return LossTerms(tokens, of_logits, of_probabilities, of_mean)


def losses(terms: LossTerms, uploaded: Sequence[Tensor], logits: Tensor) -> Tensor:
    """The losses of logits [m, V]: [m]. `uploaded` are the terms' arrays on the device."""
    tokens, of_logits, of_probabilities, of_mean = uploaded
    found = (logits.gather(1, tokens) * of_logits.to(logits.dtype)).sum(dim=1)
    if terms.of_mean.any():
        found = found + logits.mean(dim=1) * of_mean.to(logits.dtype)
    if terms.of_probabilities.any():
        probabilities = torch.softmax(wide(logits), dim=-1).gather(1, tokens)
        found = found + (probabilities * of_probabilities.to(probabilities.dtype)).sum(dim=1).to(found.dtype)
    return found


def loss_direction(
    decoder: Decoder, terms: LossTerms, uploaded: Sequence[Tensor], residual: Tensor
) -> Tensor:
    """Gradient of one row's loss at the last residual stream [T, d], final norm's scale held: [T, d]."""
    with torch.enable_grad():
        last = residual[-1:].detach().requires_grad_()
        value = losses(terms, uploaded, decoder.logits(last, HOLD_NORM_SCALES)).sum()
        (gradient,) = torch.autograd.grad(value, last)
    direction = torch.zeros_like(residual)
    direction[-1:] = gradient
    return direction


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
    block = decoder.blocks[layer_index]
    match node.node_type:
        case NodeType.MLP_NEURON:
            neurons = _on_device(index, residual)
            return block.mlp.objectives(residual[token : token + 1], neurons, trace.post_act)[0]
        case NodeType.MLP_AUTOENCODER_LATENT:
            autoencoder = autoencoder_of(node.node_type, autoencoders)
            site = mlp_site(decoder, autoencoder, layer_index, residual[token : token + 1])[0]
            return _latent_objective(autoencoder.layers[layer_index], site, index, trace.post_act)
        case NodeType.ATTENTION_AUTOENCODER_LATENT:
            autoencoder = autoencoder_of(node.node_type, autoencoders)
            site = block.attention(residual[None], HOLD_NORM_SCALES)[0, token]
            return _latent_objective(autoencoder.layers[layer_index], site, index, trace.post_act)
        case NodeType.ATTENTION_HEAD if trace.attention_trace_type is AttentionTraceType.V:
            assert probs is not None
            assert direction is not None
            return probs * _value_write(decoder, layer_index, node.tensor_indices, residual, direction)
        case _:
            return _attention_logit(decoder, trace, residual)


def mlp_site(decoder: Decoder, autoencoder: Autoencoder, layer_index: int, residual: Tensor) -> Tensor:
    """The MLP autoencoder's site, recomputed at m tokens: residual [m, d] to [m, s]."""
    found: list[Tensor] = []

    def hook(hook_point: HookPoint, _: int | None, x: Tensor) -> Tensor:
        if hook_point is autoencoder.site.hook_point:
            found.append(x)
        return x.detach() if hook_point in NORM_SCALES else x

    output = decoder.blocks[layer_index].mlp(residual, Hooks(hook, NORM_SCALES))
    return found[0] if found else output


def _latent_objective(layer: AutoencoderLayer, site: Tensor, latent: int, post_act: bool) -> Tensor:
    if post_act:
        return layer.activate(layer.pre_activations(site, holds_scale=True))[latent]
    return latent_pre_activations(layer, site[None], _on_device(latent, site))[0]


def _on_device(index: int, x: Tensor) -> Tensor:
    """An index [1] where a tensor is. It is made there: a GPU would be waited for to copy it."""
    return torch.full((1,), index, device=x.device)


def latent_pre_activations(layer: AutoencoderLayer, site: Tensor, latents: Tensor) -> Tensor:
    """Pre-activations of m latents, each of its own site values: [m, s] and [m] to [m].

    The scale of normed inputs is held constant, like that of the model's own norms.
    """
    weights, inputs = layer.encoder_weight[latents], layer.normed(site, holds_scale=True) - layer.pre_bias
    return (inputs * weights).sum(dim=-1) + layer.latent_bias[latents]


def _value_write(
    decoder: Decoder, layer_index: int, indices: tuple[int, ...], residual: Tensor, direction: Tensor
) -> Tensor:
    """`(v(k, h) W_O[h]) · direction(q)`, the gradient through the value alone."""
    query, key, head = indices
    attention = decoder.blocks[layer_index].attention
    _, _, values = attention.held(residual)
    seen = attention.write_transposed(direction[query]).view(-1, values.shape[-1])  # [H, e]
    return values[attention.group_of(head), key] @ seen[head]


def _attention_logit(decoder: Decoder, trace: Trace, residual: Tensor) -> Tensor:
    """The head's attention logit (or attention, post-activation) through its query, its key or both."""
    query, key, head = trace.node.tensor_indices
    layer_index = trace.node.layer_index
    assert layer_index is not None
    attention = decoder.blocks[layer_index].attention
    queries, keys, _ = attention.held(residual)
    q = queries[head, query]  # [e]
    k = keys[attention.group_of(head)]  # [T, e]
    if trace.attention_trace_type is AttentionTraceType.Q:
        k = k.detach()
    if trace.attention_trace_type is AttentionTraceType.K:
        q = q.detach()
    logits = k @ q  # [T]
    if trace.post_act:
        hidden = decoder.hidden_cells(len(residual))[query]
        return torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=-1)[key]
    return logits[key]

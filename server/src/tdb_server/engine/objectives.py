"""Objectives: what the backward pass starts from, one number per row.

A loss is a function of one token's logits, or a residual stream along a direction. A trace makes a node the
objective: its pre-activation is recomputed from the residual stream just before its block, with the norm's
scale held constant, so that the gradient at that residual stream is the node's own read direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdb_server.domain.node import NodeType
from tdb_server.domain.requests import AttentionTraceType, LossConfig, LossName, Trace
from tdb_server.engine.latents import autoencoder_of
from tdb_server.engine.transfers import A, Array
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.decoder import Decoder
from tdb_server.model.precision import wide

_WITHOUT_TERMS = (LossName.ZERO, LossName.KL_FROM_BASELINE, LossName.DIRECTION)
"""Losses that are no weighted sum."""


class LossTerms(NamedTuple, Generic[A]):
    """The losses of m rows as weighted sums.

    The vocabulary tokens that each row looks at, padded [m, n]; what their logits [m, n], what their
    probabilities [m, n], what the mean of all logits [m], and what the logarithms of their probabilities
    [m, n] are multiplied with.
    """

    tokens: A
    of_logits: A
    of_probabilities: A
    of_mean: A
    of_logarithms: A


def loss_terms(configs: Sequence[LossConfig | None]) -> LossTerms[Array]:
    """The terms of m rows' losses; where a row has none, the weights are zeros."""
    width = max([1, *(len(one.target_tokens) + len(one.distractor_tokens) for one in configs if one)])
    tokens = np.zeros((len(configs), width), np.int64)
    of_logits, of_probabilities = np.zeros(tokens.shape), np.zeros(tokens.shape)
    of_mean, of_logarithms = np.zeros(len(configs)), np.zeros(tokens.shape)
    for row, config in enumerate(configs):
        if config is None or config.name in _WITHOUT_TERMS:
            continue
        targets, distractors = config.target_tokens, config.distractor_tokens
        tokens[row, : len(targets) + len(distractors)] = [*targets, *distractors]
        if config.name is LossName.PROBS:
            of_probabilities[row, : len(targets)] = 1
            continue
        weights = config.target_weights or (1 / len(targets),) * len(targets)
        if config.name is LossName.LOG_PROB:
            of_logarithms[row, : len(targets)] = weights
            continue
        of_logits[row, : len(targets)] = weights
        if config.name is LossName.LOGIT_MINUS_MEAN:
            of_mean[row] = -1
        elif distractors:
            of_logits[row, len(targets) : len(targets) + len(distractors)] = -1 / len(distractors)
    return LossTerms(tokens, of_logits, of_probabilities, of_mean, of_logarithms)


@dataclass(frozen=True)
class Predictions:
    """What baselines predict, the mean over those of each of n sets.

    Attributes:
        probabilities: of the next token [n, V].
        information: each probability times its logarithm [n, V].
    """

    probabilities: Tensor
    information: Tensor

    @classmethod
    def of(cls, capped: Tensor, n_baselines: list[int]) -> Predictions:
        """Of the baselines' logits, those of one set after another [m, V]; and how many each set has."""
        logarithms = torch.log_softmax(wide(capped), dim=-1)
        probabilities = logarithms.exp()

        def means(x: Tensor) -> Tensor:
            return torch.stack([own.mean(dim=0) for own in torch.split(x, n_baselines)])

        return cls(means(probabilities), means(probabilities * logarithms))


def losses(
    host: LossTerms[Array],
    terms: LossTerms[Tensor],
    logits: Tensor,
    capped: Tensor,
    predictions: Predictions | None = None,
    divergences: Tensor | None = None,
) -> Tensor:
    """The losses of m rows [m].

    Differences are of logits before their cap, so that direct effects add up; probabilities are the model's.

    Args:
        host: as `loss_terms` gives them.
        terms: the same on the device.
        logits: before their cap [m, V].
        capped: behind it; the same where there is none.
        predictions: of baselines; None where no row's loss is a divergence from them.
        divergences: these rows, and the sets of baselines of each [2, k].
    """
    tokens, of_logits, of_probabilities, of_mean, of_logarithms = terms
    logits = wide(logits)
    found = (logits.gather(1, tokens) * of_logits.to(logits.dtype)).sum(dim=1)
    if host.of_mean.any():
        found = found + logits.mean(dim=1) * of_mean.to(logits.dtype)
    if host.of_probabilities.any():
        probabilities = torch.softmax(wide(capped), dim=-1).gather(1, tokens)
        found = found + (probabilities * of_probabilities.to(probabilities.dtype)).sum(dim=1).to(found.dtype)
    if host.of_logarithms.any():
        logarithms = torch.log_softmax(wide(capped), dim=-1).gather(1, tokens)
        found = found + (logarithms * of_logarithms.to(logarithms.dtype)).sum(dim=1).to(found.dtype)
    if predictions is not None and divergences is not None:
        rows, sets = divergences
        logarithms = torch.log_softmax(wide(capped[rows]), dim=-1)
        # The mean over baselines of p (log p - log q). The logarithms are finite where probabilities are 0.
        each = predictions.information[sets] - predictions.probabilities[sets] * logarithms
        found = found.index_add(0, rows, each.sum(dim=1).to(found.dtype))
    return found


def traced_values(
    decoder: Decoder,
    autoencoders: Sequence[Autoencoder],
    trace: Trace,
    residual: Tensor,
    rows: Tensor,
    node: Tensor,
    towards: Tensor | None = None,
) -> Tensor:
    """The objectives [m] of traces that are alike but for the nodes' indices.

    Args:
        trace: theirs.
        residual: the residual stream before the nodes' block, of the whole batch [B, T, d].
        rows: the rows of the batch that are traced [m].
        node: the nodes' indices [n_axes, m].
        towards: of values, where what each writes is projected [m, d].
    """
    layer_index, residual = trace.node.layer_index, wide(residual)
    assert layer_index is not None
    token, component = node[0], node[-1]
    block = decoder.blocks[layer_index]
    if trace.node.node_type is NodeType.ATTENTION_HEAD:
        return _of_heads(decoder, layer_index, trace, residual[rows], node, towards)
    if trace.node.node_type is NodeType.MLP_NEURON:
        return block.mlp.objectives(residual[rows, token], component, trace.post_act)
    autoencoder = autoencoder_of(trace.node.node_type, autoencoders)
    layer = autoencoder.layers[layer_index]
    if autoencoder.site.is_attention:
        inputs = autoencoder.recomputed_inputs(decoder, layer_index, residual[rows])
        read = inputs[_each(rows), token]
    else:
        read = autoencoder.recomputed_inputs(decoder, layer_index, residual[rows, token])
    if trace.post_act:
        return layer.activate(layer.pre_activations(read, holds_scale=True))[_each(rows), component]
    return latent_pre_activations(layer, read, component)


def latent_pre_activations(layer: AutoencoderLayer, read: Tensor, latents: Tensor) -> Tensor:
    """Pre-activations of m latents, each of what is read at its own token: [m, s] and [m] to [m].

    The scale of normed inputs is held constant, like that of the model's own norms.
    """
    weights, inputs = layer.encoder_weight[latents], layer.normed(read, holds_scale=True) - layer.pre_bias
    return (inputs * weights).sum(dim=-1) + layer.latent_bias[latents]


def _of_heads(
    decoder: Decoder,
    layer_index: int,
    trace: Trace,
    residual: Tensor,
    node: Tensor,
    towards: Tensor | None,
) -> Tensor:
    """The heads' attention logits (or attention) through their queries, their keys or both [m].

    Through their values: `(v(k, h) W_O[h]) · towards`. The residual stream is [m, T, d].
    """
    (query, key, head), each = node, _each(node[0])
    attention = decoder.blocks[layer_index].attention
    queries, keys, values = attention.held(residual)
    group = head // decoder.config.n_heads_per_group
    if trace.attention_trace_type is AttentionTraceType.V:
        assert towards is not None
        seen = attention.write_transposed(towards).view(len(each), -1, values.shape[-1])  # [m, H, e]
        return (values[each, group, key] * seen[each, head]).sum(dim=-1)
    q, k = queries[each, head, query], keys[each, group]  # [m, e] and [m, T, e]
    if trace.attention_trace_type is AttentionTraceType.Q:
        k = k.detach()
    if trace.attention_trace_type is AttentionTraceType.K:
        q = q.detach()
    logits = attention.cap((k @ q[:, :, None])[:, :, 0])  # [m, T]
    if trace.post_act:
        hidden = attention.hidden_cells(logits.shape[1])[query]
        logits = torch.softmax(logits.masked_fill(hidden, -torch.inf), dim=-1)
    return logits[each, key]


def _each(x: Tensor) -> Tensor:
    """0 to m - 1, of a tensor [m]."""
    return torch.arange(len(x), device=x.device)

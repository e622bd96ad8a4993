"""A decoder-only transformer in one file: GPT-2, Llama and those after them, told apart by `DecoderConfig`.

    x = embedding                                             [B, T, d]
    per block:  x = x + attention(x);  x = x + mlp(x)
    logits = norm(x) @ unembedding.T

A block is two linear maps with something nonlinear between them. With norm scales held constant, `read` takes
the residual stream to what the nonlinearity sees and `write` takes activations to the residual stream. Each
block computes its forward pass, and offers these maps and their transposes for single neurons and heads:
everything that is reported of a component is one of them, applied to something. No other package names a
weight, a norm, a mask or a family.

Where a family norms what a block adds, the gain of that norm is part of `write`. Its scale is not: whoever
asks divides by the scale that the forward pass had, at the token that is written to.

Every tensor worth looking at passes through a hook (`tdb_server.model.hooks`). Attention is written out
because the attention probabilities are themselves something people ask about.

Shapes: B rows, T tokens, d model width, H heads, G key/value heads, e head width, F neurons, V vocabulary.
Rows are padded on the right. The causal mask alone keeps padding away from real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.hook_point import HookPoint
from tdb_server.model.activations import activate
from tdb_server.model.backward_rules import (
    BackwardRules,
    activated,
    attention_pattern,
    gate_times_up,
    into_attention,
    with_constant_scale,
    with_gradient_of,
)
from tdb_server.model.config import DecoderConfig
from tdb_server.model.decoder_weights import DecoderWeights, LayerWeights, NormWeights
from tdb_server.model.hooks import HOLD_NORM_SCALES, NO_HOOKS, Hooks
from tdb_server.model.positions import Positions, positions_of_layers
from tdb_server.model.precision import wide, wide_product, widened
from tdb_server.model.rotary import rotate, write_rotated
from tdb_server.model.written_gradients import (
    gated,
    linear_read_at_few_outputs,
    linear_seen_at_few_tokens,
    rms_norm,
    split_heads,
)


def root_mean_square(x: Tensor, epsilon: float) -> Tensor:
    """[..., d] to [..., 1]."""
    return torch.sqrt(wide(x).pow(2).mean(dim=-1, keepdim=True) + epsilon).to(x.dtype)


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """`cap * tanh(x / cap)`; x itself without a cap."""
    return x if cap is None else torch.tanh(x / cap) * cap


class Norm:
    """`centered(x) / scale * gain + bias`, where RMS norms center nothing and have no bias.

    Without weights it stands where a family has no norm, and gives back what it gets.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: NormWeights | None,
        scale: HookPoint,
        layer_index: int | None,
        like: Tensor,
    ) -> None:
        """Takes its weights.

        Args:
            scale: the hook point that sees the norm's scale.
            like: `gain` is on its device, in its type.
        """
        self.weights, self.epsilon = weights, config.norm_epsilon
        self.gain = like.new_ones(config.d_model) if weights is None else weights.gain.to(like.dtype)
        self.bias = None if weights is None else weights.bias
        self.is_layer_norm = weights is not None and config.norm == "layer_norm"
        self._hook_point, self._layer_index = scale, layer_index

    def __call__(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """[..., d] to [..., d]."""
        if self.weights is None:
            return x
        if self._hook_point in hooks.inner:
            scale = hooks(self._hook_point, self._layer_index, self.scale(x))
            return self.normalize(x, with_constant_scale(scale, hooks.rules))
        if hooks.rules is None:
            return self._in_one_step(x, self.weights)
        with torch.no_grad():
            value = self._in_one_step(x, self.weights)
        return with_gradient_of(value, self.normalize(x, with_constant_scale(self.scale(x), hooks.rules)))

    def _in_one_step(self, x: Tensor, weights: NormWeights) -> Tensor:
        if self.is_layer_norm:
            return F.layer_norm(x, x.shape[-1:], weights.gain, self.bias, self.epsilon)
        return rms_norm(x, weights.gain, self.epsilon)

    def scale(self, x: Tensor) -> Tensor:
        """What is divided by: [..., d] to [..., 1]."""
        return (
            torch.ones_like(x[..., :1])
            if self.weights is None
            else root_mean_square(self.centered(x), self.epsilon)
        )

    def normalize(self, x: Tensor, scale: Tensor) -> Tensor:
        """The output, given the scale [..., 1], which a caller may hold constant."""
        if self.weights is None:
            return x
        normed = (self.centered(x) / scale * self.weights.gain).to(x.dtype)
        return normed if self.bias is None else normed + self.bias

    def gradient_before(self, x: Tensor, gradient: Tensor) -> Tensor:
        """From a gradient behind the norm [..., T, d] to that before it, through its scale too.

        Args:
            x: what was normed [T, d].
        """
        if self.weights is None:
            return gradient
        scale = self.scale(x)
        scaled, normed = gradient * self.weights.gain, self.centered(x) / scale
        return self.centered(scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True)) / scale

    def centered(self, x: Tensor) -> Tensor:
        """x less its mean over channels for layer norms; x itself for RMS norms."""
        return x - x.mean(dim=-1, keepdim=True) if self.is_layer_norm else x


class Attention:
    """One layer's attention: reads through queries, keys and values, writes through its output weights."""

    def __init__(
        self, config: DecoderConfig, weights: LayerWeights, positions: Positions, layer_index: int
    ) -> None:
        self.config, self.weights, self.layer_index = config, weights, layer_index
        like = weights.attn_out_weight
        self.norm = Norm(config, weights.attn_norm, HookPoint.ATTN_LN_SCALE, layer_index, like)
        self.post_norm = Norm(config, weights.attn_post_norm, HookPoint.ATTN_POST_LN_SCALE, layer_index, like)
        self._positions = positions
        self._is_last = layer_index == config.n_layers - 1

    def __call__(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """What it adds to the residual stream: [B, T, d] to [B, T, d]."""
        v_out = hooks.compute_and_call(HookPoint.ATTN_V_OUT, self.layer_index, self.weighted_values, x)
        joined = v_out.transpose(1, 2).flatten(2)  # [B, T, H * e]
        written = linear(joined, self.weights.attn_out_weight, self.weights.attn_out_bias, self._is_last)
        return self.post_norm(written, hooks)

    def weighted_values(self, x: Tensor, hooks: Hooks) -> Tensor:
        """Each head's sum of values, weighted by attention: [B, T, d] to [B, H, T, e]."""
        layer_index, n_heads, (n_rows, n_tokens) = self.layer_index, self.config.n_heads, x.shape[:2]
        q, k, v = self.queries_keys_values(self.norm(x, hooks), hooks.rules)
        q = hooks(HookPoint.ATTN_Q, layer_index, q)
        k = hooks(HookPoint.ATTN_K, layer_index, k)
        v = hooks(HookPoint.ATTN_V, layer_index, v)
        q, k, v = into_attention(q, k, v, hooks.rules)
        products = self.cap(self.grouped(q) @ k.transpose(-1, -2))
        with torch.no_grad():  # masked in place: softmax gives these probability 0, and no gradient
            self._positions.hide(products.view(n_rows, n_heads, n_tokens, n_tokens))
        # A new view: of one that was there before, autograd would make a slower `as_strided`.
        logits = products.view(n_rows, n_heads, n_tokens, n_tokens)
        logits = hooks(HookPoint.ATTN_QK_LOGITS, layer_index, logits)
        probs = attention_pattern(wide(logits), hooks.rules).to(x.dtype)
        probs = hooks(HookPoint.ATTN_QK_PROBS, layer_index, probs)
        return (self.grouped(probs) @ v).view(n_rows, n_heads, n_tokens, v.shape[-1])

    def queries_keys_values(
        self, normed: Tensor, rules: BackwardRules | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, d] to queries [B, H, T, e], keys [B, G, T, e] and values [B, G, T, e].

        Queries and keys each carry half of attention's scale, and their rotation where there is one.
        """
        return self.split(F.linear(normed, self.weights.qkv_weight, self.weights.qkv_bias), rules)

    def split(self, products: Tensor, rules: BackwardRules | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same of products with the weights [B, T, (H + 2G) * e], before they are normed and turned."""
        config, weights, n_tokens = self.config, self.weights, products.shape[1]
        n_queries, n_keys = config.n_heads, config.n_key_value_heads
        qkv = products.view(*products.shape[:-1], n_queries + 2 * n_keys, config.d_head)
        turns = self._positions.turns(slice(n_tokens), qkv.dtype)
        if config.qk_norm is None:
            return split_heads(qkv, n_queries, n_keys, *turns)
        q, k, v = torch.split(qkv, [n_queries, n_keys, n_keys], dim=2)
        q, k = self.normed_heads(q, weights.q_norm, rules), self.normed_heads(k, weights.k_norm, rules)
        return rotate(q.transpose(1, 2), *turns), rotate(k.transpose(1, 2), *turns), v.transpose(1, 2)

    def normed_heads(self, x: Tensor, gain: Tensor | None, rules: BackwardRules | None = None) -> Tensor:
        """Queries or keys of all heads [..., H, e], normed where a family does that, each or all together."""
        if gain is None:
            return x
        joined = x.flatten(-2) if self.config.qk_norm == "full" else x
        scale = with_constant_scale(root_mean_square(joined, self.config.norm_epsilon), rules)
        return (joined / scale * gain).to(x.dtype).view(x.shape)

    def held(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the residual stream [m, T, d], norm's scale held: [m, H or G, T, e]."""
        return self.queries_keys_values(self.norm(x, HOLD_NORM_SCALES))

    def products(self, x: Tensor) -> Tensor:
        """Each residual stream's queries, keys and values before they are normed and turned.

        [m, d] to [m, (H + 2G) * e].
        """
        return F.linear(self.norm(x), self.weights.qkv_weight, self.weights.qkv_bias)

    def logits_of(self, products: Tensor, heads: Tensor, tokens: Tensor, others: Tensor) -> Tensor:
        """Attention logits of m pairs, as functions of one side's products.

        Args:
            products: queries, keys and values before they are normed and turned [m, (H + 2G) * e].
            heads: the head of the query, or behind all of them that of the key [m].
            tokens: where that side is [m].
            others: the other side's key or query, normed and turned [m, e].

        Returns:
            [m].
        """
        config = self.config
        by_head = products.view(len(products), -1, config.d_head)
        q, k, _ = torch.split(by_head, [config.n_heads, *[config.n_key_value_heads] * 2], dim=1)
        q, k = self.normed_heads(q, self.weights.q_norm), self.normed_heads(k, self.weights.k_norm)
        own = torch.cat((q, k), dim=1)[torch.arange(len(heads), device=heads.device), heads]  # [m, e]
        turned = rotate(own, *self._positions.turns(tokens, own.dtype))
        return self.cap((turned * others).sum(dim=-1))

    def cap(self, logits: Tensor) -> Tensor:
        """Products of queries and keys to what enters the softmax."""
        return soft_cap(logits, self.config.attention_cap)

    def turned_back(self, others: Tensor, tokens: Tensor) -> Tensor:
        """Queries or keys [m, e] as products of the other side at some tokens [m] are multiplied with."""
        cosine, sine = self._positions.turns(tokens, others.dtype)
        found = torch.empty_like(others)
        write_rotated(others, cosine, sine, found, is_back=True)
        return found

    def read_transposed(self, qkv: Tensor) -> Tensor:
        """Vectors among all queries, keys and values [m, (H + 2G) * e] to the residual stream [m, d].

        Still to be multiplied with the norm's gain, centered, and divided by its scale.
        """
        return qkv @ self.weights.qkv_weight

    def read_each_transposed(self, qkv: Tensor) -> Tensor:
        """The same of each query, key and value by itself: [T, H + 2G, e] to [H + 2G, T, d]."""
        by_head = self.weights.qkv_weight.view(qkv.shape[1], -1, self.config.d_model)
        return qkv.transpose(0, 1) @ by_head

    def grouped(self, x: Tensor) -> Tensor:
        """Query heads that share keys and values together: [B, H, T, n] to [B, G, H / G * T, n]."""
        config, (n_rows, _, n_tokens, width) = self.config, x.shape
        return x.reshape(n_rows, config.n_key_value_heads, config.n_heads_per_group * n_tokens, width)

    def by_head(self, values: Tensor) -> Tensor:
        """Each query head's values: [..., G, T, e] to [..., H, T, e]."""
        n_per_group = self.config.n_heads_per_group
        return values if n_per_group == 1 else values.repeat_interleave(n_per_group, dim=-3)

    def write(self, v_out: Tensor) -> Tensor:
        """All heads' weighted sums of values side by side [..., H * e] to what they write [..., d].

        Still to be divided by the post-norm's scale, where there is one; so are those below.
        """
        return times_gain(F.linear(v_out, self.weights.attn_out_weight), self.post_norm)

    def write_transposed(self, directions: Tensor) -> Tensor:
        """Directions [..., d] as seen by all heads' values, side by side: [..., H * e]."""
        return times_gain(directions, self.post_norm) @ self.weights.attn_out_weight

    def out_weights(self) -> Tensor:
        """What each head writes with [H, d, e]."""
        config = self.config
        by_head = self.weights.attn_out_weight.view(-1, config.n_heads, config.d_head).transpose(0, 1)
        return times_gain(by_head.transpose(1, 2), self.post_norm).transpose(1, 2)

    def hidden_cells(self, n_tokens: int) -> Tensor:
        """True where it may not look: [T, T]."""
        return self._positions.mask(n_tokens)


class Mlp:
    """One layer's MLP: reads through its input weights, writes through its output weights."""

    def __init__(self, config: DecoderConfig, weights: LayerWeights, layer_index: int) -> None:
        self.config, self.weights, self.layer_index = config, weights, layer_index
        like = weights.mlp_out_weight
        self.norm = Norm(config, weights.mlp_norm, HookPoint.MLP_LN_SCALE, layer_index, like)
        self.post_norm = Norm(config, weights.mlp_post_norm, HookPoint.MLP_POST_LN_SCALE, layer_index, like)
        self._is_last = layer_index == config.n_layers - 1

    def __call__(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """What it adds to the residual stream: [B, T, d] to [B, T, d]."""
        weights, layer_index, activation = self.weights, self.layer_index, self.config.activation
        hidden = linear(self.norm(x, hooks), weights.mlp_in_weight, weights.mlp_in_bias, self._is_last)
        if not self.config.gated:
            act = activated(activation, hooks(HookPoint.MLP_PRE_ACT, layer_index, hidden), hooks.rules)
        elif HookPoint.MLP_PRE_ACT in hooks.inner or hooks.rules is not None:
            gate, up = hidden.chunk(2, dim=-1)
            gate = activated(activation, hooks(HookPoint.MLP_PRE_ACT, layer_index, gate), hooks.rules)
            act = gate_times_up(gate, up, hooks.rules)
        else:
            act = gated(activation, hidden)
        act = hooks(HookPoint.MLP_POST_ACT, layer_index, act)  # [B, T, F]
        written = linear(act, weights.mlp_out_weight, weights.mlp_out_bias, self._is_last)
        return self.post_norm(written, hooks)

    def activate(self, pre_act: Tensor) -> Tensor:
        """The nonlinearity."""
        return activate(self.config.activation, pre_act)

    def hidden(self, normed: Tensor) -> Tensor:
        """What all neurons see of what the norm gives: [..., d] to [..., F], or gate and up [..., 2F]."""
        return F.linear(normed, self.weights.mlp_in_weight, self.weights.mlp_in_bias)

    def after_hidden(self, hidden: Tensor) -> Tensor:
        """All neurons' activations, from what they see."""
        return gated(self.config.activation, hidden) if self.config.gated else self.activate(hidden)

    def written(self, post_act: Tensor) -> Tensor:
        """What all neurons write, with the bias, before the post-norm: [..., F] to [..., d]."""
        return F.linear(post_act, self.weights.mlp_out_weight, self.weights.mlp_out_bias)

    def read_transposed(self, at_hidden: Tensor) -> Tensor:
        """What is along what neurons see, [..., F] or [..., 2F], to the residual stream [..., d].

        Still to be multiplied with the norm's gain, centered, and divided by its scale.
        """
        return at_hidden @ self.weights.mlp_in_weight

    def read(self, x: Tensor, neurons: Tensor) -> Tensor:
        """What neurons see, each of its own residual stream, the norm's scale held: [m, d] and [m] to [m].

        Of a gated neuron two numbers: [2, m], gate and up.
        """
        rows = self.rows_of(neurons)
        normed = self.norm(x, HOLD_NORM_SCALES)
        hidden = (self.weights.mlp_in_weight[rows] * normed).sum(dim=-1)
        bias = self.weights.mlp_in_bias
        return hidden if bias is None else hidden + bias[rows]

    def rows_of(self, neurons: Tensor) -> Tensor:
        """The rows of the input weights that neurons [m] read with: [m], or [2, m] when gated."""
        return torch.stack((neurons, neurons + self.config.n_neurons)) if self.config.gated else neurons

    def read_weights(self, neurons: Tensor) -> Tensor:
        """What neurons read along [m, d], or gate and up [2, m, d].

        Still to be multiplied with the norm's gain, centered, and divided by its scale.
        """
        return self.weights.mlp_in_weight[self.rows_of(neurons)]

    def objectives(self, x: Tensor, neurons: Tensor, post_act: bool = False) -> Tensor:
        """Pre-activations of neurons, each of its own residual stream: [m, d] and [m] to [m].

        A gated neuron has no single pre-activation: its objective is its activation, gate and up together.
        """
        hidden = self.read(x, neurons)
        return self.after_reading(hidden) if self.config.gated or post_act else hidden

    def after_reading(self, hidden: Tensor) -> Tensor:
        """The neurons' activations: from what they see, [m] or [2, m], to [m]."""
        return self.activate(hidden[0]) * hidden[1] if self.config.gated else self.activate(hidden)

    def write(self, post_act: Tensor) -> Tensor:
        """Activations [..., F] to what they write [..., d], without the bias.

        Still to be divided by the post-norm's scale, where there is one; so are those below.
        """
        return times_gain(F.linear(post_act, self.weights.mlp_out_weight), self.post_norm)

    def write_transposed(self, directions: Tensor) -> Tensor:
        """Directions [..., d] as seen by the neurons [..., F]."""
        return times_gain(directions, self.post_norm) @ self.weights.mlp_out_weight

    def unit_writes(self, neurons: Tensor) -> Tensor:
        """What neurons [m] write per unit of activation [m, d]."""
        return times_gain(self.weights.mlp_out_weight[:, neurons].T, self.post_norm)

    def unit_write_norms(self) -> Tensor:
        """Norms of what the neurons write per unit of activation [F]."""
        norms: Tensor = times_gain(self.weights.mlp_out_weight.T, self.post_norm).norm(dim=1)
        return norms


class Block:
    """One layer."""

    def __init__(
        self, config: DecoderConfig, weights: LayerWeights, positions: Positions, layer_index: int
    ) -> None:
        self.layer_index = layer_index
        self.attention = Attention(config, weights, positions, layer_index)
        self.mlp = Mlp(config, weights, layer_index)
        self._is_parallel = config.parallel_blocks

    def __call__(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """The residual stream [B, T, d] behind the layer."""
        at, before = self.layer_index, x
        x = x + hooks(HookPoint.RESID_DELTA_ATTN, at, self.attention(x, hooks))
        if not self._is_parallel:
            before = x = hooks(HookPoint.RESID_POST_ATTN, at, x)
        x = x + hooks.compute_and_call(HookPoint.RESID_DELTA_MLP, at, self.mlp, before)
        return hooks(HookPoint.RESID_POST_MLP, at, x)


class Decoder:
    """The forward pass over frozen weights, with its blocks callable on their own."""

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, dtype: torch.dtype | None = None
    ) -> None:
        """Takes its weights.

        Args:
            dtype: in which all but scales and softmax is computed; None for that of the weights.
        """
        self.config = config
        self.weights = weights
        self.dtype = weights.token_embedding.dtype if dtype is None else dtype
        self.blocks = [
            Block(config, layer, positions, layer_index)
            for layer_index, (layer, positions) in enumerate(
                zip(weights.layers, positions_of_layers(config, self.device), strict=True)
            )
        ]
        like = weights.token_embedding[:0].to(self.dtype)
        self.final_norm = Norm(config, weights.final_norm, HookPoint.RESID_LN_F_SCALE, None, like)
        # As transformers has it, the scale of embeddings is rounded like the embeddings themselves.
        self.embedding_scale: float = torch.tensor(config.embedding_scale).to(self.dtype).item()

    def widened(self) -> Decoder:
        """The decoder that computes in float32 with these weights; itself where they are not narrower.

        The vocabulary's matrices, by far the largest, stay as they are: what is read of them is widened.
        """
        if self.dtype.itemsize >= 4:
            return self
        layers, final_norm = widened(self.weights.layers), widened(self.weights.final_norm)
        weights = replace(self.weights, layers=layers, final_norm=final_norm)
        found = Decoder(self.config, weights, torch.float32)
        found.embedding_scale = self.embedding_scale  # what enters the stream is what entered it
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are, and inputs must be."""
        return self.weights.token_embedding.device

    @property
    def digest(self) -> str:
        """Of the files that the weights were read from."""
        return self.weights.digest

    @property
    def token_embedding(self) -> Tensor:
        """What each token of the vocabulary adds to the residual stream at its place, unscaled [V, d].

        As it is stored: narrower than `dtype` in a decoder that was widened.
        """
        return self.weights.token_embedding

    @property
    def unembedding(self) -> Tensor:
        """What logits are read with [V, d], as it is stored."""
        return self.weights.unembedding

    @property
    def neurons_read_alike(self) -> bool:
        """Whether a neuron reads along one direction at all tokens: those without gates do."""
        return not self.config.gated

    @property
    def absent_hook_points(self) -> frozenset[HookPoint]:
        """What other decoders have and this one has not."""
        config = self.config
        no_pre = () if config.pre_norms else (HookPoint.ATTN_LN_SCALE, HookPoint.MLP_LN_SCALE)
        no_post = () if config.post_norms else (HookPoint.ATTN_POST_LN_SCALE, HookPoint.MLP_POST_LN_SCALE)
        no_between = (HookPoint.RESID_POST_ATTN,) if config.parallel_blocks else ()
        return frozenset((*no_pre, *no_post, *no_between))

    @property
    def write_scales(self) -> dict[HookPoint, HookPoint]:
        """By the hook point of what is written with, that of the scale which writes are divided by."""
        if not self.config.post_norms:
            return {}
        of_heads = dict.fromkeys(
            (HookPoint.ATTN_QK_PROBS, HookPoint.ATTN_V_OUT), HookPoint.ATTN_POST_LN_SCALE
        )
        return {**of_heads, HookPoint.MLP_POST_ACT: HookPoint.MLP_POST_LN_SCALE}

    @property
    def heads_read_alike(self) -> bool:
        """Whether attention logits are linear in queries and in keys, which turn alike in all layers."""
        config = self.config
        return config.qk_norm is None and config.attention_cap is None and config.sliding_rotary is None

    def along_logits(self, vectors: Tensor) -> Tensor:
        """What is written [..., d] as the unembedding sees it, the final norm's scale being 1."""
        return vectors * self.final_norm.gain

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [B, T] to the first residual stream [B, T, d]."""
        x = self.entering(F.embedding(token_ids, self.weights.token_embedding).to(self.dtype))
        if self.weights.position_embedding is not None:
            x = x + self.weights.position_embedding[: token_ids.shape[1]]
        return x

    def forward(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """The first residual stream [B, T, d] to the last one [B, T, d]."""
        x = hooks(HookPoint.RESID_POST_EMB, None, x)
        for block in self.blocks:
            x = block(x, hooks)
        return x

    def read_by_logits(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Last residual stream [..., d] to what the unembedding reads [..., d]."""
        return self.final_norm(x, hooks)

    def logits(self, x: Tensor, hooks: Hooks = NO_HOOKS) -> Tensor:
        """Last residual stream [..., d] to logits [..., V], before their cap."""
        return self.unembed(self.final_norm(x, hooks))

    def unembed(self, normed: Tensor) -> Tensor:
        """What the final norm gives [..., d] to logits [..., V], before their cap."""
        return linear_read_at_few_outputs(normed, self.weights.unembedding)

    def unembed_transposed(self, at_logits: Tensor) -> Tensor:
        """What is along logits [..., V] to what the final norm gives [..., d]."""
        return wide_product(at_logits, self.weights.unembedding)

    @property
    def caps_logits(self) -> bool:
        """Whether final logits have a cap."""
        return self.config.logit_cap is not None

    def cap(self, logits: Tensor) -> Tensor:
        """Logits before their cap to the model's own, of which probabilities are made."""
        return soft_cap(logits, self.config.logit_cap)

    def entering(self, x: Tensor) -> Tensor:
        """Token embeddings [..., d], or what is multiplied with them, as they enter the residual stream."""
        return x if self.embedding_scale == 1 else x * self.embedding_scale

    def hidden_cells(self, n_tokens: int, layers: Sequence[int]) -> Tensor:
        """True where attention of layers may not look: [L, T, T], or [1, T, T] where all look alike."""
        masks = [self.blocks[layer].attention.hidden_cells(n_tokens) for layer in layers]
        return masks[0][None] if all(one is masks[0] for one in masks) else torch.stack(masks)


def times_gain(x: Tensor, norm: Norm) -> Tensor:
    """x [..., d] times a norm's gain; x itself where there is none."""
    return x if norm.weights is None else x * norm.gain


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, is_last: bool) -> Tensor:
    """A product with a layer's weights. Of those in the last layer, a loss sees few tokens."""
    return linear_seen_at_few_tokens(x, weight, bias) if is_last else F.linear(x, weight, bias)

"""A decoder-only transformer in one file: GPT-2 and the Llama family, told apart by `DecoderConfig`.

    x = embedding                                             [B, T, d]
    per layer:  x = x + attention(norm(x));  x = x + mlp(norm(x))
    logits = norm(x) @ unembedding.T

Every tensor worth looking at passes through a *tap*: `(place, layer, tensor) -> tensor`. A tap may keep the
tensor, replace it, or hand back one whose gradient is altered; the decoder knows nothing of why.
Attention is written out because the attention probabilities are themselves something people ask about.

Shapes: B rows, T tokens, d model width, H heads, G key/value heads, e head width, F neurons, V vocabulary.
Rows are padded on the right. The causal mask alone keeps padding away from real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from tdb_server.domain.place import Place
from tdb_server.model.activations import activate, gated
from tdb_server.model.config import DecoderConfig
from tdb_server.model.rms_norm import rms_norm
from tdb_server.model.rotary import rotary_frequencies, rotate
from tdb_server.model.sparse_gradient import sparse_gradient_linear
from tdb_server.model.split_heads import split_heads

Look = Callable[[Place, int | None, Tensor], Tensor]
NORM_SCALES = frozenset({Place.ATTN_LN_SCALE, Place.MLP_LN_SCALE, Place.RESID_LN_F_SCALE})
INNER_PLACES = NORM_SCALES | {Place.MLP_PRE_ACT}
"""Places inside norms and gated MLPs."""
MIN_ROTARY_TOKENS = 1024


@dataclass(frozen=True)
class Tap:
    """What sees the tensors of a forward pass.

    Attributes:
        look: from a place, its layer and its tensor to the tensor to go on with.
        inner_places: those it sees; a norm or gated MLP of which it sees nothing is computed in one step.
    """

    look: Look
    inner_places: frozenset[Place] = INNER_PLACES

    def __call__(self, place: Place, layer_index: int | None, x: Tensor) -> Tensor:
        """Hands a tensor over."""
        return self.look(place, layer_index, x)


UNTAPPED = Tap(lambda place, layer_index, x: x, frozenset())
"""The tap that does nothing."""


@dataclass
class NormWeights:
    """Gain and bias of one norm; RMS norms have no bias."""

    gain: Tensor  # [d]
    bias: Tensor | None  # [d]


@dataclass
class LayerWeights:
    """One layer. Queries, keys and values share one matrix, as do gate and up: each is one product."""

    attn_norm: NormWeights
    qkv_weight: Tensor  # [(H + 2G) * e, d], rows: queries, keys, values
    qkv_bias: Tensor | None  # [(H + 2G) * e]
    q_norm: Tensor | None  # [e], RMS norm of each query head, where a family has one
    k_norm: Tensor | None  # [e]
    attn_out_weight: Tensor  # [d, H * e]
    attn_out_bias: Tensor | None  # [d]
    mlp_norm: NormWeights
    mlp_in_weight: Tensor  # [F, d], or [2F, d] when gated, rows: gate, up
    mlp_in_bias: Tensor | None  # [F] or [2F]
    mlp_out_weight: Tensor  # [d, F]
    mlp_out_bias: Tensor | None  # [d]


@dataclass
class DecoderWeights:
    """All weights. None of them ever requires a gradient."""

    token_embedding: Tensor  # [V, d]
    position_embedding: Tensor | None  # [context_length, d]
    layers: list[LayerWeights]
    final_norm: NormWeights
    unembedding: Tensor  # [V, d], the same tensor as token_embedding when tied
    digest: str = ""  # of the files they were read from

    def tensors(self) -> Iterator[Tensor]:
        """Every weight once, in a fixed order."""
        seen: set[int] = set()
        values = [getattr(self, field.name) for field in fields(self)]
        values += [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        for value in values:
            for tensor in (value.gain, value.bias) if isinstance(value, NormWeights) else (value,):
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


def _wide(x: Tensor) -> Tensor:
    """Half precision to float32, in which squares and exponentials neither overflow nor lose small terms."""
    return x if x.dtype == torch.float64 else x.float()


class Decoder:
    """The forward pass over frozen weights, with its parts callable on their own."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
        self._mask: Tensor | None = None
        self._barrier: Tensor | None = None
        self._half_scale: float = config.d_head**-0.25
        self._rotary: tuple[Tensor, Tensor] | None = None  # of as many tokens as were needed yet

    @property
    def device(self) -> torch.device:
        """Where the weights are, and inputs must be."""
        return self.weights.token_embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which all but scales and softmax is computed."""
        return self.weights.token_embedding.dtype

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [B, T] to the first residual stream [B, T, d]."""
        self._extend_rotary(token_ids.shape[1])
        x = F.embedding(token_ids, self.weights.token_embedding)
        if self.weights.position_embedding is not None:
            x = x + self.weights.position_embedding[: token_ids.shape[1]]
        return x

    def forward(self, x: Tensor, tap: Tap = UNTAPPED) -> Tensor:
        """The first residual stream [B, T, d] to the last one [B, T, d]."""
        x = tap(Place.RESID_POST_EMB, None, x)
        for layer_index in range(self.config.n_layers):
            delta = tap(Place.RESID_DELTA_ATTN, layer_index, self.attention(layer_index, x, tap))
            x = tap(Place.RESID_POST_ATTN, layer_index, x + delta)
            delta = tap(Place.RESID_DELTA_MLP, layer_index, self.mlp(layer_index, x, tap))
            x = tap(Place.RESID_POST_MLP, layer_index, x + delta)
        return x

    def attention(self, layer_index: int, x: Tensor, tap: Tap = UNTAPPED) -> Tensor:
        """What layer `layer_index`'s attention adds to the residual stream: [B, T, d] to [B, T, d]."""
        layer = self.weights.layers[layer_index]
        normed = self._norm(Place.ATTN_LN_SCALE, layer_index, x, layer.attn_norm, tap)
        q, k, v = self.queries_keys_values(layer_index, normed)
        q = tap(Place.ATTN_Q, layer_index, q)
        k = tap(Place.ATTN_K, layer_index, k)
        v = tap(Place.ATTN_V, layer_index, v)
        n_rows, n_tokens = x.shape[:2]
        products = self._grouped(q) @ k.transpose(-1, -2)
        shape = (n_rows, -1, n_tokens, n_tokens)  # [B, H, T, T]
        with torch.no_grad():  # what softmax ignores gets no gradient from it, with or without the mask
            self._hide(products.view(shape))
        logits = tap(Place.ATTN_QK_LOGITS, layer_index, products.view(shape))
        probs = tap(Place.ATTN_QK_PROBS, layer_index, torch.softmax(_wide(logits), dim=-1).to(x.dtype))
        v_out = (self._grouped(probs) @ v).view(n_rows, -1, n_tokens, v.shape[-1])
        v_out = tap(Place.ATTN_V_OUT, layer_index, v_out)  # [B, H, T, e]
        joined = v_out.transpose(1, 2).flatten(2)  # [B, T, H * e]
        return self._linear(layer_index, joined, layer.attn_out_weight, layer.attn_out_bias)

    def queries_keys_values(self, layer_index: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, d] to queries [B, H, T, e], keys [B, G, T, e] and values [B, G, T, e].

        Queries and keys each carry half of the `1 / sqrt(e)` scale, and their rotation where there is one.
        """
        config, layer = self.config, self.weights.layers[layer_index]
        qkv = F.linear(normed, layer.qkv_weight, layer.qkv_bias)
        qkv = qkv.view(*normed.shape[:-1], -1, config.d_head)  # [B, T, H + 2G, e]
        n_queries, n_keys = config.n_heads, config.n_key_value_heads
        if layer.q_norm is None and layer.k_norm is None:
            return split_heads(qkv, n_queries, n_keys, *self._turns(slice(normed.shape[1]), qkv.dtype))
        q, k, v = torch.split(qkv.transpose(1, 2), [n_queries, n_keys, n_keys], dim=1)
        return self.place_heads(q, layer.q_norm), self.place_heads(k, layer.k_norm), v

    def place_heads(self, x: Tensor, head_norm: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Queries or keys [B, heads, T, e] as products give them to what attention multiplies.

        They are normed where a family does that, scaled, and rotated where there is rotation: by their place
        in the prompt, or by `positions` [T] where tokens were picked from it.
        """
        if head_norm is not None:
            x = x / self._root_mean_square(x) * head_norm
        return rotate(x, *self._turns(slice(x.shape[2]) if positions is None else positions, x.dtype))

    def _extend_rotary(self, n_tokens: int) -> None:
        """Makes the tables of angles long enough: they grow in powers of two, as far as the context goes.

        A model may claim a context that nobody's memory has room for.
        """
        config = self.config
        if config.rotary_theta is None or (self._rotary and len(self._rotary[0]) >= n_tokens):
            return
        n_rows = max(MIN_ROTARY_TOKENS, 1 << (n_tokens - 1).bit_length())
        cosine, sine = rotary_frequencies(config, min(n_rows, config.context_length), self.device)
        self._rotary = cosine * self._half_scale, sine * self._half_scale

    def _turns(self, tokens: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor | float, Tensor | None]:
        """What queries and keys are multiplied with for their scale and their rotation, at some tokens."""
        if isinstance(tokens, slice):
            self._extend_rotary(tokens.stop)
        if self._rotary is None:
            return self._half_scale, None
        cosine, sine = (table[tokens].to(dtype) for table in self._rotary)  # scaled, too
        return cosine, sine

    def mlp(self, layer_index: int, x: Tensor, tap: Tap = UNTAPPED) -> Tensor:
        """What layer `layer_index`'s MLP adds to the residual stream: [B, T, d] to [B, T, d]."""
        layer = self.weights.layers[layer_index]
        normed = self._norm(Place.MLP_LN_SCALE, layer_index, x, layer.mlp_norm, tap)
        hidden = self._linear(layer_index, normed, layer.mlp_in_weight, layer.mlp_in_bias)
        if not self.config.gated:
            act = self.activate(tap(Place.MLP_PRE_ACT, layer_index, hidden))
        elif Place.MLP_PRE_ACT in tap.inner_places:
            gate, up = hidden.chunk(2, dim=-1)
            act = self.activate(tap(Place.MLP_PRE_ACT, layer_index, gate)) * up
        else:
            act = gated(self.config.activation, hidden)
        act = tap(Place.MLP_POST_ACT, layer_index, act)  # [B, T, F]
        return self._linear(layer_index, act, layer.mlp_out_weight, layer.mlp_out_bias)

    def _linear(self, layer_index: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A product with a layer's weights. Of those in the last layer, a loss sees few tokens."""
        is_last = layer_index == self.config.n_layers - 1
        return sparse_gradient_linear(x, weight, bias) if is_last else F.linear(x, weight, bias)

    def activate(self, pre_act: Tensor) -> Tensor:
        """The MLP's nonlinearity."""
        return activate(self.config.activation, pre_act)

    def logits(self, x: Tensor, tap: Tap = UNTAPPED) -> Tensor:
        """Last residual stream [..., d] to logits [..., V]."""
        return F.linear(self.final_normed(x, tap), self.weights.unembedding)

    def final_normed(self, x: Tensor, tap: Tap = UNTAPPED) -> Tensor:
        """Last residual stream [..., d] to what the unembedding reads [..., d]."""
        return self._norm(Place.RESID_LN_F_SCALE, None, x, self.weights.final_norm, tap)

    def _norm(self, place: Place, layer_index: int | None, x: Tensor, norm: NormWeights, tap: Tap) -> Tensor:
        """A norm's output; `place` is its scale's."""
        if place in tap.inner_places:
            return self.normalize(x, tap(place, layer_index, self.norm_scale(x)), norm)
        if self.config.norm == "layer_norm":
            return F.layer_norm(x, x.shape[-1:], norm.gain, norm.bias, self.config.norm_epsilon)
        return rms_norm(x, norm.gain, self.config.norm_epsilon)

    def norm_scale(self, x: Tensor) -> Tensor:
        """What a norm divides by: [..., d] to [..., 1]."""
        return self._root_mean_square(self.centered(x))

    def normalize(self, x: Tensor, scale: Tensor, norm: NormWeights) -> Tensor:
        """The norm's output, given its scale [..., 1], which a caller may hold constant."""
        normed = self.centered(x) / scale * norm.gain
        return normed if norm.bias is None else normed + norm.bias

    def centered(self, x: Tensor) -> Tensor:
        """x less its mean over channels for layer norms; x itself for RMS norms."""
        return x - x.mean(dim=-1, keepdim=True) if self.config.norm == "layer_norm" else x

    def _root_mean_square(self, x: Tensor) -> Tensor:
        mean_square = _wide(x).pow(2).mean(dim=-1, keepdim=True)
        return torch.sqrt(mean_square + self.config.norm_epsilon).to(x.dtype)

    def _grouped(self, x: Tensor) -> Tensor:
        """Query heads that share keys and values together: [B, H, T, n] to [B, G, H / G * T, n]."""
        return x.reshape(x.shape[0], self.config.n_key_value_heads, -1, x.shape[-1])

    def repeat_groups(self, x: Tensor) -> Tensor:
        """Key/value heads [B, G, ...] to one for each query head [B, H, ...]."""
        repeats = self.config.n_heads_per_group
        return x if repeats == 1 else x.repeat_interleave(repeats, dim=1)

    def _hide(self, logits: Tensor) -> None:
        """Makes logits [..., T, T] -inf where attention may not look, in place.

        To clear and to add takes a quarter of what it takes to choose. Nothing is left of what was there, not
        even of what is not a number.
        """
        n_tokens = logits.shape[-1]
        if self._barrier is None or len(self._barrier) != n_tokens:
            self._barrier = logits.new_zeros(n_tokens, n_tokens).masked_fill(self.mask(n_tokens), -torch.inf)
        logits.tril_()
        if self.config.sliding_window is not None:
            logits.triu_(1 - self.config.sliding_window)
        logits.add_(self._barrier)

    def mask(self, n_tokens: int) -> Tensor:
        """True where attention may not look: [T, T].

        The last one is kept: every layer, and most calls, need one of the same length.
        """
        if self._mask is None or len(self._mask) != n_tokens:
            ones = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=self.device)
            self._mask = ones.triu(1)
            if self.config.sliding_window is not None:
                self._mask |= ones.tril(-self.config.sliding_window)
        return self._mask

"""A second implementation of the decoders, in float64, from the definitions and for transformers' weights.

It shares nothing with the server but the names of hook points. Tensors are laid out as clients index them,
behind a leading axis of copies: an edit may hand back many copies of one tensor, each altered in another way,
and the rest of the forward pass is then computed for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tdb_server.domain.hook_point import HookPoint
from torch import Tensor
from transformers import PreTrainedModel

Spot = tuple[HookPoint, int | None]
Edit = Callable[[Tensor], Tensor]
Edits = Mapping[Spot, Edit]
Seen = dict[Spot, Tensor]

_GPT2_NAMES = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "layer": "transformer.h.{}.",
    "attn_norm": "ln_1",
    "attn_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
    "final_norm": "transformer.ln_f",
}
_ROTARY_NAMES = {
    "embedding": "model.embed_tokens",
    "layer": "model.layers.{}.",
    "attn_norm": "input_layernorm",
    "attn_out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp_out": "mlp.down_proj",
    "final_norm": "model.norm",
}


class PlainModel:
    """A decoder as functions of float64 tensors [copies, T, ...]."""

    def __init__(self, reference: PreTrainedModel) -> None:
        config = reference.config
        self.weights = {name: x.double() for name, x in reference.state_dict().items()}
        self.is_gpt2 = config.model_type == "gpt2"
        self.names = _GPT2_NAMES if self.is_gpt2 else _ROTARY_NAMES
        self.n_layers = config.num_hidden_layers
        self.n_heads = config.num_attention_heads
        self.n_groups = self.n_heads if self.is_gpt2 else config.num_key_value_heads
        self.d_head = config.hidden_size // self.n_heads if self.is_gpt2 else config.head_dim
        self.d_model = config.hidden_size
        self.epsilon = config.layer_norm_epsilon if self.is_gpt2 else config.rms_norm_eps
        self.window = getattr(config, "sliding_window", None) or 10**9
        self.theta = None if self.is_gpt2 else config.rope_parameters["rope_theta"]

    def run(self, token_ids: tuple[int, ...], edits: Edits | None = None) -> Seen:
        """Every place of the forward pass, each after its own edit."""
        seen: Seen = {}

        def tap(place: HookPoint, layer: int | None, x: Tensor) -> Tensor:
            edit = (edits or {}).get((place, layer))
            seen[place, layer] = x if edit is None else edit(x)
            return seen[place, layer]

        x = self.weights[self.names["embedding"] + ".weight"][list(token_ids)][None]
        if self.is_gpt2:
            x = x + self.weights[self.names["positions"] + ".weight"][: len(token_ids)]
        x = tap(HookPoint.RESID_POST_EMB, None, x)
        for layer in range(self.n_layers):
            x = tap(HookPoint.RESID_POST_ATTN, layer, x + self.attention(layer, x, tap))
            x = tap(HookPoint.RESID_POST_MLP, layer, x + self.mlp(layer, x, tap))
        scale = tap(HookPoint.RESID_LN_F_SCALE, None, self.scale(x))
        tap(HookPoint.LOGITS, None, self.norm(x, scale, self.names["final_norm"]) @ self.unembedding.T)
        return seen

    def attention(self, layer: int, x: Tensor, tap: Callable[..., Tensor] | None = None) -> Tensor:
        tap = tap or (lambda place, layer, x: x)
        scale = tap(HookPoint.ATTN_LN_SCALE, layer, self.scale(x))
        q, k, v = self.queries_keys_values(layer, x, scale)
        q, k, v = (
            tap(place, layer, one)
            for place, one in ((HookPoint.ATTN_Q, q), (HookPoint.ATTN_K, k), (HookPoint.ATTN_V, v))
        )
        logits = torch.einsum("cqhe,ckhe->cqkh", q, self.for_heads(k))
        logits = logits.masked_fill(self.masked(x.shape[1])[:, :, None], -torch.inf)
        logits = tap(HookPoint.ATTN_QK_LOGITS, layer, logits)
        probs = tap(HookPoint.ATTN_QK_PROBS, layer, logits.exp() / logits.exp().sum(dim=2, keepdim=True))
        v_out = tap(HookPoint.ATTN_V_OUT, layer, torch.einsum("cqkh,ckhe->cqhe", probs, self.for_heads(v)))
        delta = torch.einsum("cqhe,hed->cqd", v_out, self.out_weights(layer)) + self.attn_out_bias(layer)
        return tap(HookPoint.RESID_DELTA_ATTN, layer, delta)

    def queries_keys_values(self, layer: int, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [c, T, H, e], keys and values [c, T, G, e], given the norm's scale [c, T, 1]."""
        prefix = self.names["layer"].format(layer)
        normed = self.norm(x, scale, prefix + self.names["attn_norm"])
        if self.is_gpt2:
            q, k, v = self.linear(normed, prefix + "attn.c_attn").chunk(3, dim=-1)
        else:
            q, k, v = (self.linear(normed, f"{prefix}self_attn.{one}_proj") for one in "qkv")
        q, k, v = (one.unflatten(-1, (-1, self.d_head)) for one in (q, k, v))
        if f"{prefix}self_attn.q_norm.weight" in self.weights:
            q = q / self.scale(q) * self.weights[f"{prefix}self_attn.q_norm.weight"]
            k = k / self.scale(k) * self.weights[f"{prefix}self_attn.k_norm.weight"]
        if self.theta is not None:
            q, k = self.rotated(q), self.rotated(k)
        return q / self.d_head**0.25, k / self.d_head**0.25, v

    def rotated(self, x: Tensor) -> Tensor:
        """Channel i of a head and channel i + e/2 are one complex number, which turns with the position."""
        half = self.d_head // 2
        speed = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[1])[:, None, None] * speed  # [T, 1, e/2]
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), dim=-1)

    def mlp(self, layer: int, x: Tensor, tap: Callable[..., Tensor] | None = None) -> Tensor:
        tap = tap or (lambda place, layer, x: x)
        scale = tap(HookPoint.MLP_LN_SCALE, layer, self.scale(x))
        pre, up = self.mlp_inputs(layer, x, scale)
        post = tap(HookPoint.MLP_POST_ACT, layer, self.activate(tap(HookPoint.MLP_PRE_ACT, layer, pre)) * up)
        return tap(
            HookPoint.RESID_DELTA_MLP, layer, post @ self.mlp_out_weight(layer) + self.mlp_out_bias(layer)
        )

    def mlp_inputs(self, layer: int, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations [c, T, F] and what the activations are multiplied with, 1 where nothing is."""
        prefix = self.names["layer"].format(layer)
        normed = self.norm(x, scale, prefix + self.names["mlp_norm"])
        if self.is_gpt2:
            pre = self.linear(normed, prefix + "mlp.c_fc")
            return pre, torch.ones_like(pre)
        return self.linear(normed, prefix + "mlp.gate_proj"), self.linear(normed, prefix + "mlp.up_proj")

    def activate(self, x: Tensor) -> Tensor:
        if self.is_gpt2:
            return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return x / (1 + torch.exp(-x))

    def scale(self, x: Tensor) -> Tensor:
        """What a norm divides by."""
        return ((self.centred(x) ** 2).mean(dim=-1, keepdim=True) + self.epsilon) ** 0.5

    def norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        normed = self.centred(x) / scale * self.weights[f"{name}.weight"]
        return normed + self.weights.get(f"{name}.bias", 0.0)

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True) if self.is_gpt2 else x

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return x @ (weight if self.is_gpt2 else weight.T) + self.weights.get(f"{name}.bias", 0.0)

    def for_heads(self, x: Tensor) -> Tensor:
        """Keys or values by group [c, T, G, e] to by head [c, T, H, e]."""
        groups = torch.arange(self.n_heads) * self.n_groups // self.n_heads
        return x[:, :, groups]

    def masked(self, n_tokens: int) -> Tensor:
        """True where attention does not look [q, k]."""
        query, key = torch.arange(n_tokens)[:, None], torch.arange(n_tokens)[None]
        return (key > query) | (key <= query - self.window)

    def _out(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        full = self.names["layer"].format(layer) + self.names[name]
        weight = self.weights[f"{full}.weight"]
        bias = self.weights.get(f"{full}.bias", torch.zeros(self.d_model, dtype=torch.float64))
        return weight if self.is_gpt2 else weight.T, bias

    def out_weights(self, layer: int) -> Tensor:
        """Output weights of the heads [H, e, d]."""
        return self._out(layer, "attn_out")[0].unflatten(0, (self.n_heads, self.d_head))

    def attn_out_bias(self, layer: int) -> Tensor:
        return self._out(layer, "attn_out")[1]

    def mlp_out_weight(self, layer: int) -> Tensor:
        """Output weights of the neurons [F, d]."""
        return self._out(layer, "mlp_out")[0]

    def mlp_out_bias(self, layer: int) -> Tensor:
        return self._out(layer, "mlp_out")[1]

    @property
    def token_embedding(self) -> Tensor:
        return self.weights[self.names["embedding"] + ".weight"]

    @property
    def unembedding(self) -> Tensor:
        return self.weights["lm_head.weight"]

    @property
    def final_gain(self) -> Tensor:
        return self.weights[self.names["final_norm"] + ".weight"]

    @property
    def final_bias(self) -> Tensor:
        none = torch.zeros(self.d_model, dtype=torch.float64)
        return self.weights.get(self.names["final_norm"] + ".bias", none)

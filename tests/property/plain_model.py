"""A second implementation of the decoders, in float64, from the definitions and for transformers' weights.

It shares nothing with the server but the names of hook points. Tensors are laid out as clients index them,
behind a leading axis of copies: an edit may hand back many copies of one tensor, each altered in another way,
and the rest of the forward pass is then computed for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
    "qkv": "attn.c_attn",
    "attn_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
    "final_norm": "transformer.ln_f",
}
_NEOX_NAMES = {
    "embedding": "gpt_neox.embed_in",
    "layer": "gpt_neox.layers.{}.",
    "attn_norm": "input_layernorm",
    "qkv": "attention.query_key_value",
    "attn_out": "attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "mlp_in": "mlp.dense_h_to_4h",
    "mlp_out": "mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
}
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "layer": "model.layers.{}.",
    "attn_norm": "input_layernorm",
    "qkv": "self_attn.qkv_proj",
    "attn_out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp_in": "mlp.gate_up_proj",
    "mlp_out": "mlp.down_proj",
    "final_norm": "model.norm",
}
_GEMMA_NAMES = _LLAMA_NAMES | {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_OLMO_NAMES = _LLAMA_NAMES | {
    "attn_norm": "",
    "mlp_norm": "",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_NAMES = {
    "gpt2": _GPT2_NAMES,
    "gpt_neox": _NEOX_NAMES,
    "gemma2": _GEMMA_NAMES,
    "gemma3_text": _GEMMA_NAMES,
    "olmo2": _OLMO_NAMES,
}


class PlainModel:
    """A decoder as functions of float64 tensors [copies, T, ...]."""

    def __init__(self, reference: PreTrainedModel) -> None:
        config: Any = reference.config
        self.config, kind = config, config.model_type
        self.weights = {name: x.double() for name, x in reference.state_dict().items()}
        self.is_gpt2, self.is_neox, self.is_gemma = kind == "gpt2", kind == "gpt_neox", "gemma" in kind
        self.is_gated = not (self.is_gpt2 or self.is_neox)
        self.centres = self.is_gpt2 or self.is_neox or kind == "stablelm"
        self.is_parallel = self.is_neox and config.use_parallel_residual
        self.names = _NAMES.get(kind, _LLAMA_NAMES)
        self.n_layers = config.num_hidden_layers
        self.n_heads = config.num_attention_heads
        self.n_groups = config.num_key_value_heads if self.is_gated else self.n_heads
        self.d_model = config.hidden_size
        self.d_head = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        named = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
        self.epsilon = next(getattr(config, name) for name in named if hasattr(config, name))
        self.attention_cap = config.attn_logit_softcapping if kind == "gemma2" else None
        self.logit_cap = getattr(config, "final_logit_softcapping", None)
        scale = {"granite": lambda: config.attention_multiplier} | dict.fromkeys(
            ("gemma2", "gemma3_text"), lambda: config.query_pre_attn_scalar**-0.5
        )
        self.attention_scale = scale.get(kind, lambda: self.d_head**-0.5)()
        self.embedding_scale = (
            self.d_model**0.5 if self.is_gemma else getattr(config, "embedding_multiplier", 1.0)
        )
        self.write_scale = getattr(config, "residual_multiplier", 1.0)

    def run(self, token_ids: tuple[int, ...], edits: Edits | None = None) -> Seen:
        """Every place of the forward pass, each after its own edit."""
        seen: Seen = {}

        def tap(place: HookPoint, layer: int | None, x: Tensor) -> Tensor:
            edit = (edits or {}).get((place, layer))
            seen[place, layer] = x if edit is None else edit(x)
            return seen[place, layer]

        x = self.token_embedding[list(token_ids)][None]
        if self.is_gpt2:
            x = x + self.weights[self.names["positions"] + ".weight"][: len(token_ids)]
        x = tap(HookPoint.RESID_POST_EMB, None, x)
        for layer in range(self.n_layers):
            before = x
            x = x + self.attention(layer, x, tap)
            if not self.is_parallel:
                before = x = tap(HookPoint.RESID_POST_ATTN, layer, x)
            x = tap(HookPoint.RESID_POST_MLP, layer, x + self.mlp(layer, before, tap))
        scale = tap(HookPoint.RESID_LN_F_SCALE, None, self.scale(x))
        tap(
            HookPoint.LOGITS,
            None,
            self.capped(self.norm(x, scale, self.names["final_norm"]) @ self.unembedding.T),
        )
        return seen

    def attention(self, layer: int, x: Tensor, tap: Callable[..., Tensor] | None = None) -> Tensor:
        tap = tap or (lambda place, layer, x: x)
        scale = tap(HookPoint.ATTN_LN_SCALE, layer, self.scale(x)) if self.names["attn_norm"] else None
        q, k, v = self.queries_keys_values(layer, x, scale)
        q, k, v = (
            tap(place, layer, one)
            for place, one in ((HookPoint.ATTN_Q, q), (HookPoint.ATTN_K, k), (HookPoint.ATTN_V, v))
        )
        logits = self.attention_capped(torch.einsum("cqhe,ckhe->cqkh", q, self.for_heads(k)))
        logits = logits.masked_fill(self.masked(x.shape[1], layer)[:, :, None], -torch.inf)
        logits = tap(HookPoint.ATTN_QK_LOGITS, layer, logits)
        probs = tap(HookPoint.ATTN_QK_PROBS, layer, logits.exp() / logits.exp().sum(dim=2, keepdim=True))
        v_out = tap(HookPoint.ATTN_V_OUT, layer, torch.einsum("cqkh,ckhe->cqhe", probs, self.for_heads(v)))
        written = torch.einsum("cqhe,hed->cqd", v_out, self.out_weights(layer)) + self.attn_out_bias(layer)
        return tap(HookPoint.RESID_DELTA_ATTN, layer, self._behind(layer, written, "attn", tap))

    def _behind(self, layer: int, written: Tensor, block: str, tap: Callable[..., Tensor]) -> Tensor:
        """What a block adds, of what it writes."""
        name = self.names.get(f"{block}_post_norm")
        if name is None:
            return written
        place = HookPoint.ATTN_POST_LN_SCALE if block == "attn" else HookPoint.MLP_POST_LN_SCALE
        scale = tap(place, layer, self.scale(written))
        return self.norm(written, scale, self.names["layer"].format(layer) + name)

    def times_behind(self, seen: Seen, layer: int, block: str) -> Tensor:
        """What everything that a block ("attn" or "mlp") writes is multiplied with on its way [T, d]."""
        name = self.names.get(f"{block}_post_norm")
        if name is None:
            return torch.ones(seen[HookPoint.RESID_POST_EMB, None].shape[1:], dtype=torch.float64)
        place = HookPoint.ATTN_POST_LN_SCALE if block == "attn" else HookPoint.MLP_POST_LN_SCALE
        return self.gain(self.names["layer"].format(layer) + name) / seen[place, layer][0]

    def queries_keys_values(
        self, layer: int, x: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [c, T, H, e], keys and values [c, T, G, e], given the norm's scale [c, T, 1]."""
        prefix = self.names["layer"].format(layer)
        normed = self.norm(x, scale, prefix + self.names["attn_norm"]) if scale is not None else x
        if self.is_neox:
            by_head = self.linear(normed, prefix + self.names["qkv"]).unflatten(-1, (self.n_heads, 3, -1))
            q, k, v = by_head.unbind(dim=-2)
        elif f"{prefix}{self.names['qkv']}.weight" in self.weights:
            sizes = [self.n_heads * self.d_head, *[self.n_groups * self.d_head] * 2]
            q, k, v = self.linear(normed, prefix + self.names["qkv"]).split(sizes, dim=-1)
        else:
            q, k, v = (self.linear(normed, f"{prefix}self_attn.{one}_proj") for one in "qkv")
        q, k, v = (one.reshape(*x.shape[:2], -1, self.d_head) for one in (q, k, v))
        if f"{prefix}self_attn.q_norm.weight" in self.weights:
            q = self.normed_heads(q, f"{prefix}self_attn.q_norm")
            k = self.normed_heads(k, f"{prefix}self_attn.k_norm")
        if not self.is_gpt2:
            q, k = self.rotated(q, layer), self.rotated(k, layer)
        half = self.attention_scale**0.5
        return q * half, k * half, v

    def normed_heads(self, x: Tensor, name: str) -> Tensor:
        """Queries or keys [c, T, heads, e], normed each or, where the gain is as wide, all together."""
        gain = self.gain(name)
        if len(gain) == self.d_head:
            return x / self.root_mean_square(x) * gain
        return x / self.root_mean_square(x.flatten(2))[..., None] * gain.view(-1, self.d_head)

    def rotated(self, x: Tensor, layer: int) -> Tensor:
        """Channels i and i + n/2 of the n that turn are one complex number, which turns with the position."""
        rope = self.config.rope_parameters
        rope = rope.get(self.layer_type(layer), rope)
        half = int(self.d_head * (rope.get("partial_rotary_factor") or 1.0)) // 2
        speed = rope["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
        longer = 1.0
        if rope["rope_type"] == "linear":
            speed = speed / rope["factor"]
        if rope["rope_type"] == "longrope":
            speed = speed / torch.tensor(rope["short_factor"], dtype=torch.float64)
            short = torch.tensor(float(rope["original_max_position_embeddings"]))
            stretched = self.config.max_position_embeddings / short
            longer = float((1 + stretched.log() / short.log()).sqrt())
        angles = torch.arange(x.shape[1])[:, None, None] * speed  # [T, 1, n/2]
        turned = torch.complex(x[..., :half], x[..., half : 2 * half])
        turned = turned * torch.polar(torch.full_like(angles, longer), angles)
        return torch.cat((turned.real, turned.imag, x[..., 2 * half :]), dim=-1)

    def layer_type(self, layer: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        return kinds[layer] if kinds else "sliding_attention"

    def mlp(self, layer: int, x: Tensor, tap: Callable[..., Tensor] | None = None) -> Tensor:
        tap = tap or (lambda place, layer, x: x)
        scale = tap(HookPoint.MLP_LN_SCALE, layer, self.scale(x)) if self.names["mlp_norm"] else None
        pre, up = self.mlp_inputs(layer, x, scale)
        post = tap(HookPoint.MLP_POST_ACT, layer, self.activate(tap(HookPoint.MLP_PRE_ACT, layer, pre)) * up)
        written = post @ self.mlp_out_weight(layer) + self.mlp_out_bias(layer)
        return tap(HookPoint.RESID_DELTA_MLP, layer, self._behind(layer, written, "mlp", tap))

    def mlp_inputs(self, layer: int, x: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pre-activations [c, T, F] and what the activations are multiplied with, 1 where nothing is."""
        prefix = self.names["layer"].format(layer)
        normed = self.norm(x, scale, prefix + self.names["mlp_norm"]) if scale is not None else x
        if not self.is_gated:
            pre = self.linear(normed, prefix + self.names["mlp_in"])
            return pre, torch.ones_like(pre)
        if f"{prefix}{self.names['mlp_in']}.weight" in self.weights:
            gate, up = self.linear(normed, prefix + self.names["mlp_in"]).chunk(2, dim=-1)
            return gate, up
        return self.linear(normed, prefix + "mlp.gate_proj"), self.linear(normed, prefix + "mlp.up_proj")

    def activate(self, x: Tensor) -> Tensor:
        if self.is_neox:
            return x / 2 * (1 + torch.erf(x / 2**0.5))
        if self.is_gpt2 or self.is_gemma:
            return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
        return x / (1 + torch.exp(-x))

    def scale(self, x: Tensor) -> Tensor:
        """What a norm divides by."""
        return self.root_mean_square(self.centred(x))

    def root_mean_square(self, x: Tensor) -> Tensor:
        return ((x**2).mean(dim=-1, keepdim=True) + self.epsilon) ** 0.5

    def gain(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight"] + (1 if self.is_gemma else 0)

    def norm(self, x: Tensor, scale: Tensor, name: str) -> Tensor:
        normed = self.centred(x) / scale * self.gain(name)
        return normed + self.weights.get(f"{name}.bias", 0.0)

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True) if self.centres else x

    def capped(self, logits: Tensor) -> Tensor:
        """The model's own logits, of those before their cap."""
        return logits if self.logit_cap is None else self.logit_cap * (logits / self.logit_cap).tanh()

    def attention_capped(self, logits: Tensor) -> Tensor:
        cap = self.attention_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    def linear(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return x @ (weight if self.is_gpt2 else weight.T) + self.weights.get(f"{name}.bias", 0.0)

    def for_heads(self, x: Tensor) -> Tensor:
        """Keys or values by group [c, T, G, e] to by head [c, T, H, e]."""
        groups = torch.arange(self.n_heads) * self.n_groups // self.n_heads
        return x[:, :, groups]

    def masked(self, n_tokens: int, layer: int) -> Tensor:
        """True where attention of a layer does not look [q, k]."""
        window = getattr(self.config, "sliding_window", None)
        if window is None or self.layer_type(layer) == "full_attention":
            window = n_tokens
        query, key = torch.arange(n_tokens)[:, None], torch.arange(n_tokens)[None]
        return (key > query) | (key <= query - window)

    def _out(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        full = self.names["layer"].format(layer) + self.names[name]
        weight = self.weights[f"{full}.weight"]
        bias = self.weights.get(f"{full}.bias", torch.zeros(self.d_model, dtype=torch.float64))
        return (weight if self.is_gpt2 else weight.T) * self.write_scale, bias * self.write_scale

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
        """As it enters the stream."""
        return self.weights[self.names["embedding"] + ".weight"] * self.embedding_scale

    @property
    def unembedding(self) -> Tensor:
        return self.weights["lm_head.weight"] / getattr(self.config, "logits_scaling", 1.0)

    @property
    def final_gain(self) -> Tensor:
        return self.gain(self.names["final_norm"])

    @property
    def final_bias(self) -> Tensor:
        none = torch.zeros(self.d_model, dtype=torch.float64)
        return self.weights.get(self.names["final_norm"] + ".bias", none)

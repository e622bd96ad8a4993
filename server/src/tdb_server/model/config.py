"""The shape of a decoder: what differs between the model families, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Rotary:
    """How queries and keys turn with their position.

    Attributes:
        theta: the base of the angles.
        n_channels: how many channels of each head turn, from the first.
        scaling: the checkpoint's `rope_scaling` block as given; empty where there is none.
    """

    theta: float
    n_channels: int
    scaling: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderConfig:
    """Dimensions and switches of one configured decoder.

    Attributes:
        family: the Hugging Face `model_type` ("gpt2", "llama", ...), for people.
        n_layers, d_model, n_heads, n_key_value_heads, d_head: as everywhere in the field.
        n_neurons: MLP neurons per layer.
        vocabulary_size: rows of the unembedding.
        context_length: the longest prompt, in tokens.
        norm: "layer_norm" (centred, with bias) or "rms_norm".
        norm_epsilon: added to the mean square under the root.
        adds_one_to_gains: whether checkpoints store gains less 1 (Gemma).
        pre_norms: whether blocks read the stream through a norm.
        post_norms: whether what a block adds is normed.
        qk_norm: what queries and keys are normed over before they turn: "head" (Qwen3), "full" (OLMo 2).
        parallel_blocks: whether the MLP reads the stream that attention reads, not the one behind it.
        activation: "gelu_tanh", "gelu" or "silu".
        gated: whether a neuron is `act(gate) * up`, not `act(pre)` alone.
        rotary: how queries and keys turn; None for learned positions.
        sliding_window: how many tokens back attention may look, in layers that slide; None without bound.
        sliding_layers: whether each layer slides; None: all do.
        sliding_rotary: how queries and keys turn in layers that slide; None: as in the others.
        attention_scale: what products of queries and keys are multiplied with; None for `1 / sqrt(d_head)`.
        attention_cap, logit_cap: bounds of soft caps, `cap * tanh(x / cap)`, of attention and final logits.
        embedding_scale: what token embeddings are multiplied with before they enter the stream.
        residual_multiplier: what blocks' output weights are multiplied with (Granite).
        logit_divisor: what logits are divided by (Granite).
        tied_embeddings: whether the unembedding is the token embedding.
        qkv_bias, attn_out_bias, mlp_bias: which products add a bias.
        bos_token_id: for people; prompts are never given one silently.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    n_neurons: int
    vocabulary_size: int
    context_length: int
    norm: Literal["layer_norm", "rms_norm"]
    norm_epsilon: float
    activation: str
    gated: bool
    rotary: Rotary | None
    tied_embeddings: bool
    adds_one_to_gains: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: Literal["head", "full"] | None = None
    parallel_blocks: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] | None = None
    sliding_rotary: Rotary | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None

    @property
    def n_heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_key_value_heads

    def slides(self, layer_index: int) -> bool:
        """Whether attention of a layer looks no further back than the window."""
        return self.sliding_window is not None and (
            self.sliding_layers is None or self.sliding_layers[layer_index]
        )

    def window_of(self, layer_index: int) -> int | None:
        """How many tokens back attention of a layer may look; None without bound."""
        return self.sliding_window if self.slides(layer_index) else None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The windows of all layers; empty where no layer has one."""
        found = tuple(map(self.window_of, range(self.n_layers)))
        return found if any(found) else ()

    def rotary_of(self, layer_index: int) -> Rotary | None:
        """How queries and keys of a layer turn."""
        return self.sliding_rotary or self.rotary if self.slides(layer_index) else self.rotary

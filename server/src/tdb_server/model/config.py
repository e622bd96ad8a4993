"""The shape of a decoder: what differs between the model families, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


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
        activation: "gelu_tanh", "gelu" or "silu".
        gated: whether a neuron is `act(gate) * up`, not `act(pre)` alone.
        rotary_theta: base of the rotary positions; None for learned positions.
        rotary_scaling: the checkpoint's `rope_scaling` block as given, or None.
        sliding_window: how many tokens back attention may look; None without bound.
        tied_embeddings: whether the unembedding is the token embedding.
        qkv_bias, attn_out_bias, mlp_bias: which products add a bias.
        head_norms: whether every query and key head is normed before it is rotated (Qwen3).
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
    norm: str
    norm_epsilon: float
    activation: str
    gated: bool
    rotary_theta: float | None
    tied_embeddings: bool
    rotary_scaling: dict[str, object] | None = None
    sliding_window: int | None = None
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    bos_token_id: int | None = None

    @property
    def n_heads_per_group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_key_value_heads

"""The weights of a decoder.

Queries, keys and values share one matrix, as do gate and up: each is one product.

Shapes: d model width, H heads, G key/value heads, e head width, F neurons, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class NormWeights:
    """Gain and bias of one norm; RMS norms have no bias."""

    gain: Tensor  # [d]; float32 where it is a sum with 1, which half precision would round
    bias: Tensor | None  # [d]


@dataclass
class LayerWeights:
    """One layer. Norms are None where a family has none."""

    attn_norm: NormWeights | None
    qkv_weight: Tensor  # [(H + 2G) * e, d], rows: queries, keys, values
    qkv_bias: Tensor | None  # [(H + 2G) * e]
    q_norm: Tensor | None  # RMS norm of each query head [e], or of all of them together [H * e]
    k_norm: Tensor | None  # [e] or [G * e]
    attn_out_weight: Tensor  # [d, H * e]
    attn_out_bias: Tensor | None  # [d]
    attn_post_norm: NormWeights | None  # of what attention adds
    mlp_norm: NormWeights | None
    mlp_in_weight: Tensor  # [F, d], or [2F, d] when gated, rows: gate, up
    mlp_in_bias: Tensor | None  # [F] or [2F]
    mlp_out_weight: Tensor  # [d, F]
    mlp_out_bias: Tensor | None  # [d]
    mlp_post_norm: NormWeights | None  # of what the MLP adds


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

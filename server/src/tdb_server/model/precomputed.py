"""What follows from the weights alone and every call needs: computed once, when the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tdb_server.model.decoder import Decoder
from tdb_server.model.precision import wide_sum


@dataclass(frozen=True)
class Precomputed:
    """Norms and sums of frozen weights.

    Attributes:
        neuron_write_norms: norm of each neuron's unit write [L, F], and
        head_write_grams: per head `W_O[h]^T W_O[h]` [L, H, e, e], so that `‖v W_O[h]‖² = v gram v`; both with
            the post-norm's gain, but not its scale.
        attention_gains: of the norms before attention [L, d].
        mlp_gains: of the norms before MLPs [L, d].
        mlp_biases: of the same norms, where they have one [L, d].
        unembedding_sum: the unembedding summed over the vocabulary [d].
    """

    neuron_write_norms: Tensor
    head_write_grams: Tensor
    attention_gains: Tensor
    mlp_gains: Tensor
    mlp_biases: Tensor | None
    unembedding_sum: Tensor


def precompute(decoder: Decoder) -> Precomputed:
    """Computes them for a decoder."""
    grams, norms = [], []
    for block in decoder.blocks:
        by_head = block.attention.out_weights()  # [H, d, e]
        grams.append(by_head.transpose(1, 2) @ by_head)
        norms.append(block.mlp.unit_write_norms())
    biases = [bias for block in decoder.blocks if (bias := block.mlp.norm.bias) is not None]
    return Precomputed(
        torch.stack(norms),
        torch.stack(grams),
        torch.stack([block.attention.norm.gain for block in decoder.blocks]),
        torch.stack([block.mlp.norm.gain for block in decoder.blocks]),
        torch.stack(biases) if biases else None,
        wide_sum(decoder.unembedding),
    )


def value_write_norms(values: Tensor, grams: Tensor) -> Tensor:
    """Norms of what values [..., T, e] write, given their heads' grams [..., e, e]: [..., T]."""
    return ((values @ grams) * values).sum(dim=-1).clamp(min=0).sqrt()

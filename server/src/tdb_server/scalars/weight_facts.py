"""What follows from the weights alone and every call needs: computed once, when the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdb_server.model.decoder import Decoder


@dataclass(frozen=True)
class WeightFacts:
    """Facts about frozen weights, by layer where they differ.

    Attributes:
        neuron_write_norms: norm of each neuron's unit write [F].
        head_write_grams: per head `W_O[h] W_O[h]^T` [H, e, e], so that `‖v W_O[h]‖² = v gram v`.
        unembedding_sum: the unembedding summed over the vocabulary [d].
    """

    neuron_write_norms: tuple[Tensor, ...]
    head_write_grams: tuple[Tensor, ...]
    unembedding_sum: Tensor


def weight_facts(decoder: Decoder) -> WeightFacts:
    """Computes the facts for a decoder."""
    grams = []
    for layer in decoder.weights.layers:
        out = layer.attn_out_weight.view(-1, decoder.config.n_heads, decoder.config.d_head)  # [d, H, e]
        by_head = out.transpose(0, 1)  # [H, d, e]
        grams.append(by_head.transpose(1, 2) @ by_head)
    return WeightFacts(
        tuple(layer.mlp_out_weight.norm(dim=0) for layer in decoder.weights.layers),
        tuple(grams),
        decoder.weights.unembedding.sum(dim=0),
    )

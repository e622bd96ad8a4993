"""GPT-2 (Radford et al. 2019): layer norms, learned positions, neurons without gates."""

from __future__ import annotations

from tdb_server.errors import ModelBroken
from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family
from tdb_server.model.families.weight_names import WeightNames

NAMES_OF_OTHERS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""What other families call entries of GPT-2's configuration; transformers takes these before GPT-2's own."""


def configure(config: Block) -> DecoderConfig:
    """The decoder of a GPT-2 configuration."""
    for other, own in NAMES_OF_OTHERS.items():
        if config.get(other) is not None:
            entries.tell_of_two(own, config.get(own), other, config[other])
            config = {**config, own: config[other]}
    entries.expect(
        config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False
    )
    d_model, n_heads = entries.count(config, "n_embd"), entries.count(config, "n_head")
    if d_model % n_heads:
        raise ModelBroken(f"config.json: n_embd {d_model} is not a multiple of n_head {n_heads}")
    return DecoderConfig(
        family="gpt2",
        n_layers=entries.count(config, "n_layer"),
        d_model=d_model,
        n_heads=n_heads,
        n_key_value_heads=n_heads,
        d_head=d_model // n_heads,
        n_neurons=entries.count(config, "n_inner", 4 * d_model),
        vocabulary_size=entries.count(config, "vocab_size"),
        context_length=entries.count(config, "n_positions"),
        norm="layer_norm",
        norm_epsilon=entries.number(config, "layer_norm_epsilon", 1e-5),
        activation=entries.activation(config, "activation_function", "gelu_new"),
        gated=False,
        rotary=None,
        tied_embeddings=entries.flag(config, "tie_word_embeddings", True),
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        bos_token_id=entries.optional_id(config, "bos_token_id"),
    )


NAMES = WeightNames(
    prefixes=("transformer.",),
    token_embedding="wte",
    position_embedding="wpe",
    final_norm="ln_f",
    layers="h",
    attn_norm="ln_1",
    qkv=("attn.c_attn",),
    attn_out="attn.c_proj",
    mlp_norm="ln_2",
    mlp_in=("mlp.c_fc",),
    mlp_out="mlp.c_proj",
    matrices="transposed",
    left_alone=(".attn.bias", ".attn.masked_bias"),
)

FAMILIES = {"gpt2": Family(configure, NAMES)}

"""GPT-NeoX (Black et al. 2022), as which the Pythia models come.

Layer norms; a quarter of each head turns; attention and MLP read the same stream side by side.
"""

from __future__ import annotations

from dataclasses import replace

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family
from tdb_server.model.families.weight_names import WeightNames


def configure(config: Block) -> DecoderConfig:
    """The decoder of a GPT-NeoX configuration."""
    entries.expect_even_heads(config)
    biased = entries.flag(config, "attention_bias", True)
    share, theta = entries.number(config, "rotary_pct", 0.25), config.get("rotary_emb_base")
    own_names = {**config, "rope_theta": theta, "partial_rotary_factor": share, "num_key_value_heads": None}
    return replace(
        entries.rotary_decoder(own_names, rotary_share=share),
        norm="layer_norm",
        norm_epsilon=entries.number(config, "layer_norm_eps", 1e-5),
        activation=entries.activation(config, "hidden_act", "gelu"),
        gated=False,
        parallel_blocks=entries.flag(config, "use_parallel_residual", True),
        qkv_bias=biased,
        attn_out_bias=biased,
        mlp_bias=True,
    )


NAMES = WeightNames(
    prefixes=("gpt_neox.",),
    token_embedding="embed_in",
    final_norm="final_layer_norm",
    layers="layers",
    attn_norm="input_layernorm",
    qkv=("attention.query_key_value",),
    attn_out="attention.dense",
    mlp_norm="post_attention_layernorm",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_out="mlp.dense_4h_to_h",
    matrices="heads_interleaved",
    left_alone=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    unembedding="embed_out",
    other_names={"lm_head.weight": "embed_out.weight"},
)

FAMILIES = {"gpt_neox": Family(configure, NAMES)}

"""Gemma 2 (Riviere et al. 2024) and Gemma 3 (Kamath et al. 2025).

Blocks have norms before and behind, whose gains are stored less 1; embeddings are scaled; layers alternate
between a window and everything. Gemma 2 caps attention and logits softly; Gemma 3 norms queries and keys
instead, and turns them by other angles in layers that slide. A folder that sees images too holds the same
decoder under a longer prefix.
"""

from __future__ import annotations

from dataclasses import replace

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries, llama
from tdb_server.model.families.entries import FULL, SLIDING, Block
from tdb_server.model.families.family import Family


def gemma2(config: Block) -> DecoderConfig:
    """Every other layer slides."""
    decoder = entries.rotary_decoder({"tie_word_embeddings": True, **config}, default_d_head=256)
    return replace(
        _gemma(config, decoder, every=2),
        attention_cap=entries.cap(config, "attn_logit_softcapping", 50.0),
        logit_cap=entries.cap(config, "final_logit_softcapping", 30.0),
    )


def gemma3(config: Block) -> DecoderConfig:
    """Five of six layers slide, and turn by angles of their own. There is no cap of attention."""
    entries.expect(config, attn_logit_softcapping=False)
    blocks = entries.rotary_blocks_by_kind(
        config,
        entries.number(config, "rope_theta", 1_000_000.0),
        entries.number(config, "rope_local_base_freq", 10_000.0),
    )
    plain = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    own = {"tie_word_embeddings": True, **plain, "rope_parameters": blocks[FULL]}
    decoder = entries.rotary_decoder({"max_position_embeddings": 131_072, **own}, default_d_head=256)
    every = entries.count(config, "sliding_window_pattern", 6)
    return replace(
        _gemma(config, decoder, every),
        qk_norm="head",
        sliding_rotary=entries.rotary(blocks[SLIDING], own, decoder.d_head),
        logit_cap=entries.cap(config, "final_logit_softcapping", None),
    )


def gemma3_of_images(config: Block) -> DecoderConfig:
    """The decoder of a folder that sees images too."""
    text = {"vocab_size": 262_208, **GEMMA3_4B, **entries.block_of(config, "text_config")}
    if "tie_word_embeddings" in config:
        text["tie_word_embeddings"] = config["tie_word_embeddings"]
    return gemma3({**text, "model_type": config["model_type"]})


GEMMA3_4B = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""What transformers takes where the `text_config` of a folder that sees images leaves an entry out."""


def _gemma(config: Block, decoder: DecoderConfig, every: int) -> DecoderConfig:
    """What both have: `every` is how many layers there are from one that sees everything to the next."""
    entries.expect(config, use_bidirectional_attention=False)
    biased = entries.flag(config, "attention_bias", False)
    slides = entries.sliding_layers(config, entries.every_nth_sees_all(config, every))
    return replace(
        decoder,
        adds_one_to_gains=True,
        post_norms=True,
        activation=entries.activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        attention_scale=entries.number(config, "query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=decoder.d_model**0.5,
        qkv_bias=biased,
        attn_out_bias=biased,
        sliding_window=entries.window(config.get("sliding_window", 4096), slides),
        sliding_layers=slides,
    )


NAMES = replace(
    llama.NAMES,
    prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    parts_left_alone=("vision_tower.", "multi_modal_projector."),
)

FAMILIES = {
    "gemma2": Family(gemma2, NAMES),
    "gemma3": Family(gemma3_of_images, NAMES),
    "gemma3_text": Family(gemma3, NAMES),
}

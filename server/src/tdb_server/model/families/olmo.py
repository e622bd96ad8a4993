"""OLMo 2 (Walsh et al. 2025) and OLMo 3.

Blocks read the stream itself and norm what they add; queries and keys are normed over all heads together.
OLMo 3 slides in three of four layers.
"""

from __future__ import annotations

from dataclasses import replace

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries, llama
from tdb_server.model.families.entries import FULL, SLIDING, Block
from tdb_server.model.families.family import Family


def olmo2(config: Block) -> DecoderConfig:
    """All layers see everything."""
    biased = entries.flag(config, "attention_bias", False)
    return replace(
        entries.rotary_decoder({"rms_norm_eps": 1e-5, **config}),
        pre_norms=False,
        post_norms=True,
        qk_norm="full",
        qkv_bias=biased,
        attn_out_bias=biased,
    )


def olmo3(config: Block) -> DecoderConfig:
    """A scaling and a base outside `rope_parameters` are those of layers that see everything.

    So transformers reads them.
    """
    theta = entries.number(config, "rope_theta", 500_000.0)
    blocks = entries.rotary_blocks_by_kind(config, theta, 500_000.0)
    plain = {key: value for key, value in config.items() if key not in ("rope_scaling", "rope_theta")}
    decoder = olmo2({**plain, "rope_parameters": blocks[FULL]})
    slides = entries.sliding_layers(config, entries.every_nth_sees_all(config, 4))
    return replace(
        decoder,
        sliding_window=entries.window(config.get("sliding_window", 4096), slides),
        sliding_layers=slides,
        sliding_rotary=entries.rotary(blocks[SLIDING], plain, decoder.d_head),
    )


NAMES = replace(
    llama.NAMES,
    attn_norm="",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="",
    mlp_post_norm="post_feedforward_layernorm",
)

FAMILIES = {"olmo2": Family(olmo2, NAMES), "olmo3": Family(olmo3, NAMES)}

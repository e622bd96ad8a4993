"""StableLM (Bellagente et al. 2024): a Llama with layer norms, of whose heads a quarter turns."""

from __future__ import annotations

from dataclasses import replace

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries, llama
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family


def configure(config: Block) -> DecoderConfig:
    """The decoder of a StableLM configuration."""
    entries.expect_even_heads(config)
    entries.expect(config, use_parallel_residual=False, qk_layernorm=False)
    return replace(
        entries.rotary_decoder(config, rotary_share=0.25),
        norm="layer_norm",
        norm_epsilon=entries.number(config, "layer_norm_eps", 1e-5),
        qkv_bias=entries.flag(config, "use_qkv_bias", False),
    )


FAMILIES = {"stablelm": Family(configure, llama.NAMES)}

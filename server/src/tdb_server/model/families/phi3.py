"""Phi-3 (Abdin et al. 2024): a Llama whose matrices are joined, with a rotation stretched by "longrope"."""

from __future__ import annotations

from dataclasses import replace

from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries, llama
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family


def configure(config: Block) -> DecoderConfig:
    """The decoder of a Phi-3 configuration."""
    renamed = {"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, **config}
    for key in ("rope_scaling", "rope_parameters"):
        block = entries.block_of(config, key)
        for name in ("type", "rope_type"):
            if block.get(name) == "su":  # what longrope was called at first
                renamed[key] = block = {**block, name: "longrope"}
    decoder = entries.rotary_decoder(renamed, rotary_share=1.0)
    size = config.get("sliding_window")
    slides = (size is not None,) * decoder.n_layers
    return replace(decoder, sliding_window=entries.window(size, slides))


NAMES = replace(llama.NAMES, qkv=("self_attn.qkv_proj",), mlp_in=("mlp.gate_up_proj",))

FAMILIES = {"phi3": Family(configure, NAMES)}

"""Llama (Touvron et al. 2023) and those that differ from it by a switch: Mistral, Qwen 2 and 3, Granite."""

from __future__ import annotations

import logging
from dataclasses import replace

from tdb_server.errors import UnsupportedModel
from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import entries
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family
from tdb_server.model.families.weight_names import WeightNames

_log = logging.getLogger(__name__)


def llama(config: Block) -> DecoderConfig:
    """Biases where the configuration asks for them."""
    biased, mlp_bias = entries.flag(config, "attention_bias", False), entries.flag(config, "mlp_bias", False)
    if config.get("sliding_window") is not None:
        _log.warning(
            "config.json: sliding_window %s is not used: llama models attend to all tokens before",
            config["sliding_window"],
        )
    decoder = entries.rotary_decoder(config)
    return replace(decoder, qkv_bias=biased, attn_out_bias=biased, mlp_bias=mlp_bias)


def mistral(config: Block) -> DecoderConfig:
    """A window in all layers."""
    decoder = entries.rotary_decoder(config)
    size = config.get("sliding_window", 4096)  # transformers' default, which the first Mistral relies on
    slides = entries.sliding_layers(config, (size is not None,) * decoder.n_layers)
    if len(set(slides)) > 1:
        raise UnsupportedModel("config.json: a sliding window in some of Mistral's layers is not supported")
    return replace(decoder, sliding_window=entries.window(size, slides))


def qwen2(config: Block) -> DecoderConfig:
    """Biases of queries, keys and values; a window in the upper layers, switched off where models ship."""
    decoder = entries.rotary_decoder(config)
    size = config.get("sliding_window", 4096) if entries.flag(config, "use_sliding_window", False) else None
    n_full_layers = entries.count_or_zero(config, "max_window_layers", 28)
    slides = tuple(
        size is not None and layer_index >= n_full_layers for layer_index in range(decoder.n_layers)
    )
    slides = entries.sliding_layers(config, slides)
    return replace(decoder, qkv_bias=True, sliding_window=entries.window(size, slides), sliding_layers=slides)


def qwen3(config: Block) -> DecoderConfig:
    """Norms of each query and key head."""
    biased = entries.flag(config, "attention_bias", False)
    d_head = entries.count(config, "head_dim", 128)
    return replace(
        qwen2({**config, "head_dim": d_head}), qkv_bias=biased, attn_out_bias=biased, qk_norm="head"
    )


def granite(config: Block) -> DecoderConfig:
    """Constants that multiply embeddings, attention, what blocks add, and (by division) logits."""
    return replace(
        llama(config),
        embedding_scale=entries.number(config, "embedding_multiplier", 1.0),
        attention_scale=entries.number(config, "attention_multiplier", 1.0),
        residual_multiplier=entries.signed_number(config, "residual_multiplier", 1.0),
        logit_divisor=entries.number(config, "logits_scaling", 1.0),
    )


NAMES = WeightNames(
    prefixes=("model.",),
    token_embedding="embed_tokens",
    final_norm="norm",
    layers="layers",
    attn_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    qk_norms=("self_attn.q_norm", "self_attn.k_norm"),
    attn_out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_out="mlp.down_proj",
)

FAMILIES = {
    "llama": Family(llama, NAMES),
    "mistral": Family(mistral, NAMES),
    "qwen2": Family(qwen2, NAMES),
    "qwen3": Family(qwen3, NAMES),
    "granite": Family(granite, NAMES),
}

"""GGUF files of small models, written with the gguf package in llama.cpp's own order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.random_models import FIXTURES

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
OUTER_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "embed_in": "token_embd",
    "embed_out": "output",
    "final_layer_norm": "output_norm",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
}
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "olmo3": "olmo2"}
"""What llama.cpp calls families that have another name there."""
LONG_ROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [1.0, 2.0, 4.0, 9.0],
    },
}
"""Entries of a Phi-3 whose rotation has factors, other ones beyond 32 tokens."""
HAVE_POST_NORMS = ("gemma2", "gemma3", "olmo2")
Array = np.ndarray[Any, Any]
Edit = Callable[[gguf.GGUFWriter], object]
Kind = gguf.GGMLQuantizationType


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: Kind = Kind.F32,
    edit: Edit | None = None,
    change: Callable[[str, Array], Array | None] | None = None,
    **options: Any,
) -> Path:
    """A Hugging Face folder as llama.cpp would convert it.

    Args:
        folder: as `write_random_model` makes them.
        path: the file to write.
        kind: how matrices are stored whose rows fit into its blocks.
        edit: adds to the file, or alters its keys, before it is written.
        change: from a tensor's name in the file and its values to others; None leaves it out.
        options: of the writer.

    Returns:
        The file.
    """
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    architecture = ARCHITECTURES.get(family, family)
    writer = gguf.GGUFWriter(path, architecture, **options)
    add_sizes(writer, config)
    add_vocabulary(writer)
    for name, factors in rotary_factors(config).items():
        writer.add_tensor(name, np.asarray(factors, np.float32))
    for name, values in load_file(folder / "model.safetensors").items():
        target, ordered = as_in_gguf(name, values, config, architecture)
        changed = ordered if change is None else change(target, ordered)
        if changed is None:
            continue
        block_size = gguf.GGML_QUANT_SIZES[kind][0]
        if kind != Kind.F32 and changed.ndim == 2 and changed.shape[1] % block_size == 0:
            writer.add_tensor(target, gguf.quants.quantize(changed, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, changed)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_in_gguf(name: str, values: Array, config: dict[str, Any], architecture: str) -> tuple[str, Array]:
    """A checkpoint's tensor under llama.cpp's name and in its order."""
    short, end = re.sub(r"^(model|transformer|gpt_neox)\.", "", name).rsplit(".", 1)
    if architecture.startswith("gemma") and short.endswith("norm"):
        values = values + 1
    if not short.startswith(("layers.", "h.")):
        return f"{OUTER_NAMES[short]}.{end}", values
    _, layer_index, inner = short.split(".", 2)
    if architecture in HAVE_POST_NORMS and inner == "post_attention_layernorm":
        return f"blk.{layer_index}.post_attention_norm.{end}", values
    if inner == "attention.query_key_value":
        n_heads = config["num_attention_heads"]
        queries, keys, values = np.moveaxis(values.reshape(n_heads, 3, -1, *values.shape[1:]), 1, 0)
        values = np.concatenate((queries, keys, values)).reshape(-1, *values.shape[2:])
    if inner.startswith(("attn.c", "mlp.c_")):
        values = np.ascontiguousarray(values.T)
    if architecture in ("granite", "llama") and inner in ("self_attn.q_proj", "self_attn.k_proj"):
        values = interleave(values, config["head_dim"])
    return f"blk.{layer_index}.{LAYER_NAMES[inner]}.{end}", values


def interleave(values: Array, d_head: int) -> Array:
    """Rows 0, e/2, 1, e/2 + 1, ... of every head."""
    order = np.arange(d_head).reshape(2, -1).T.ravel()
    rows = np.concatenate([start + order for start in range(0, len(values), d_head)])
    return np.ascontiguousarray(values[rows])


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The keys that llama.cpp's converter writes for every model."""
    if config["model_type"] == "gpt2":
        writer.add_block_count(config["n_layer"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
        writer.add_context_length(config["n_positions"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_head_count(config["num_attention_heads"])
    if config["model_type"] == "gpt_neox":
        d_head = config["hidden_size"] // config["num_attention_heads"]
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        rope = config["rope_parameters"]
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * d_head))
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_parallel_residual(config["use_parallel_residual"])
        return
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_context_length(config["max_position_embeddings"])
    rope = config["rope_parameters"]
    if config["model_type"] == "stablelm":
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * 8))
        writer.add_parallel_residual(True)  # so the converter writes where a folder does not say it
        return
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config["model_type"] == "phi3":
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * 8))
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
        writer.add_sliding_window(config["sliding_window"] or 0)
        if rotary_factors(config):
            short = config["original_max_position_embeddings"]
            scale = config["max_position_embeddings"] / short
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(short)))
        return
    writer.add_rope_dimension_count(8)
    if config["model_type"] == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        return
    writer.add_key_length(8)
    if config["model_type"] == "olmo3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern([one == "sliding_attention" for one in config["layer_types"]])
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def rotary_factors(config: dict[str, Any]) -> dict[str, list[float]]:
    """The tensors that llama.cpp's converter writes of Phi-3's rotation."""
    rope = config.get("rope_parameters") or {}
    if config["model_type"] != "phi3" or "long_factor" not in rope:
        return {}
    return {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("long", "short")}


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """The fixtures' tokenizer of 1000 tokens."""
    model = json.loads((FIXTURES / "tiny-a" / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*sorted(model["vocab"], key=model["vocab"].get), "<|endoftext|>"])
    writer.add_token_types([1] * 999 + [3])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(999)


def setting(**keys: object) -> Edit:
    """An edit that sets keys of the architecture, `**{"rope.scaling.factor": 2.0}`; None removes one."""

    def edit(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            full = f"{writer.arch}.{key}"
            writer.kv_data[0].pop(full, None)
            match value:
                case bool():
                    writer.add_bool(full, value)
                case int():
                    writer.add_uint32(full, value)
                case float():
                    writer.add_float32(full, value)
                case str():
                    writer.add_string(full, value)
                case list():
                    writer.add_array(full, value)
                case None:
                    pass  # only removed
                case _:
                    raise TypeError(f"{key}: {value!r}")

    return edit

"""GGUF files, written here with the gguf package in llama.cpp's own order and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder

from tests.random_models import FIXTURES, reference_model, write_random_model

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
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
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
}
Edit = Callable[[gguf.GGUFWriter], object]


def write_gguf(folder: Path, path: Path, quantize: bool = False, edit: Edit | None = None) -> Path:
    """A Hugging Face folder as llama.cpp would convert it."""
    config = json.loads((folder / "config.json").read_text())
    family = config["model_type"]
    writer = gguf.GGUFWriter(path, "llama" if family == "mistral" else family)
    add_sizes(writer, config)
    add_vocabulary(writer)
    for name, values in load_file(folder / "model.safetensors").items():
        short, end = name.removeprefix("model.").removeprefix("transformer.").rsplit(".", 1)
        if short.startswith(("layers.", "h.")):
            _, layer_index, inner = short.split(".", 2)
            target = f"blk.{layer_index}.{LAYER_NAMES[inner]}.{end}"
            if inner.startswith(("attn.c", "mlp.c_")):
                values = np.ascontiguousarray(values.T)
            if family == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
                values = interleave(values, config["head_dim"])
        else:
            target = f"{OUTER_NAMES[short]}.{end}"
        if quantize and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave(values: np.ndarray[Any, Any], d_head: int) -> np.ndarray[Any, Any]:
    """Rows 0, e/2, 1, e/2 + 1, ... of every head."""
    order = np.arange(d_head).reshape(2, -1).T.ravel()
    rows = np.concatenate([start + order for start in range(0, len(values), d_head)])
    return np.ascontiguousarray(values[rows])


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
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
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(8)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(8)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    model = json.loads((FIXTURES / "tiny-a" / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*sorted(model["vocab"], key=model["vocab"].get), "<|endoftext|>"])
    writer.add_token_types([1] * 999 + [3])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(999)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {}),
    ],
)
def test_a_converted_model_answers_as_the_original(
    tmp_path: Path, family: str, overrides: dict[str, Any]
) -> None:
    original = write_random_model(tmp_path / "original", family, **overrides)
    target = tmp_path / "converted"
    target.mkdir()
    seen: list[tuple[str, float]] = []
    convert_gguf(write_gguf(original, tmp_path / "m.gguf"), target, lambda *progress: seen.append(progress))
    decoder = load_decoder(target, "cpu", torch.float32)
    ids = torch.arange(20)[None] * 11
    ours = decoder.logits(decoder.forward(decoder.embed(ids)))
    torch.testing.assert_close(ours, reference_model(original)(ids).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, reference_model(target)(ids).logits, atol=1e-4, rtol=1e-4)
    assert decoder.config.bos_token_id == 999
    assert seen[0] == ("reading GGUF", 0.0)
    assert seen[-1] == ("dequantizing", 1.0)


def test_quantized_weights_are_close(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama", tie_word_embeddings=True)
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(write_gguf(original, tmp_path / "m.gguf", quantize=True), target)
    exact, rough = load_file(original / "model.safetensors"), load_file(target / "model.safetensors")
    assert exact.keys() == rough.keys()
    for name, values in exact.items():
        assert rough[name].dtype == np.float32
        np.testing.assert_allclose(rough[name], values, atol=0.01)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(write_gguf(original, tmp_path / "m.gguf"), target)
    ours, theirs = Tokenizer(target), Tokenizer(original)
    for text in ("When Mary and John went to the store", "naïve 我 🎉 1234\n\n  x<|endoftext|>"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.token_strings(range(1000)) == theirs.token_strings(range(1000))


def test_a_window_makes_a_llama_a_mistral(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    convert_gguf(write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_sliding_window(5)), tmp_path)
    config = load_decoder(tmp_path, "cpu", torch.float32).config
    assert (config.family, config.sliding_window) == ("mistral", 5)


def test_linear_scaling_comes_along(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    original = write_random_model(tmp_path / "original", "llama")
    convert_gguf(write_gguf(original, tmp_path / "m.gguf", edit=edit), tmp_path)
    config = load_decoder(tmp_path, "cpu", torch.float32).config
    assert config.rotary_scaling == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), r"rope_freqs\.weight"),
        (lambda w: w.add_tensor("blk.0.odd.weight", np.ones(4, np.float32)), r"blk\.0\.odd\.weight"),
        (lambda w: w.add_expert_count(8), "experts"),
        (lambda w: w.kv_data[0]["llama.rope.dimension_count"].__setattr__("value", 4), "part of each head"),
        (lambda w: w.kv_data[0]["tokenizer.ggml.pre"].__setattr__("value", "viking"), r"m\.gguf: .*'viking'"),
        (lambda w: w.kv_data[0]["tokenizer.ggml.model"].__setattr__("value", "t5"), "'t5'"),
        (lambda w: w.kv_data[0]["general.architecture"].__setattr__("value", "mamba"), "'mamba'"),
    ],
)
def test_unsupported(tmp_path: Path, edit: Edit, message: str) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    with pytest.raises(UnsupportedModel, match=message):
        convert_gguf(write_gguf(original, tmp_path / "m.gguf", edit=edit), tmp_path)


@pytest.mark.parametrize("key", ["llama.block_count", "tokenizer.ggml.merges", "llama.context_length"])
def test_missing_metadata(tmp_path: Path, key: str) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.kv_data[0].pop(key))
    with pytest.raises(ModelBroken, match=rf"m\.gguf: .*{key.split('.', 1)[1]} is missing"):
        convert_gguf(path, tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 3, 100, 30_000, 60_000])
def test_cut_off_files(tmp_path: Path, n_bytes: int) -> None:
    whole = write_gguf(write_random_model(tmp_path / "original", "llama"), tmp_path / "m.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:n_bytes])
    with pytest.raises(ModelBroken, match=r"cut\.gguf"):
        convert_gguf(path, tmp_path)

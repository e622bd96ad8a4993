"""GGUF files become Hugging Face folders that answer as the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tdb_server.errors import ModelBroken, ModelError, UnsupportedModel
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder

from tests.gguf_models import LONG_ROPE, Array, Kind, setting, write_gguf
from tests.random_models import FAMILIES, reference_model, write_random_model

IDS = torch.arange(20)[None] * 11


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each family, with the family's usual options."""
    root = tmp_path_factory.mktemp("originals")
    return {family: write_random_model(root / family, family) for family in FAMILIES}


def convert(path: Path) -> Path:
    target = path.with_suffix("")
    target.mkdir()
    convert_gguf(path, target)
    return target


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    decoder = load_decoder(folder, "cpu", torch.float32)
    return decoder.cap(decoder.logits(decoder.forward(decoder.embed(IDS))))


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("llama", {"mlp_bias": True, "num_key_value_heads": 4}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True}),
        ("gpt2", {}),
        ("gemma2", {"query_pre_attn_scalar": 8}),
        (
            "gemma2",
            {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        ),
        ("gemma2", {"num_hidden_layers": 46, "num_attention_heads": 8, "query_pre_attn_scalar": 4}),
        ("gemma3_text", {"sliding_window_pattern": 6, "num_hidden_layers": 7, "query_pre_attn_scalar": 8}),
        ("gpt_neox", {}),
        ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 0.5, "tie_word_embeddings": True}),
        ("olmo2", {}),
        ("olmo2", {"sliding_window": None, "num_key_value_heads": 4}),
        ("olmo3", {}),
        ("olmo3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("granite", {}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("stablelm", {}),
        ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
        ("phi3", {}),
        ("phi3", {"sliding_window": 5, "partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
        ("phi3", LONG_ROPE),
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
    expected = reference_model(original)(IDS).logits
    torch.testing.assert_close(logits(target), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(target), reference_model(target)(IDS).logits, atol=1e-4, rtol=1e-4)
    assert load_decoder(target, "cpu", torch.float32).config.bos_token_id == 999
    assert seen[0] == ("reading GGUF", 0.0)
    assert seen[-1] == ("dequantizing", 1.0)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [(Kind.F16, 1e-3), (Kind.BF16, 1e-2), (Kind.Q8_0, 1e-2), (Kind.Q5_1, 0.1)]
)
def test_weights_in_fewer_bits_are_close(tmp_path: Path, kind: Kind, tolerance: float) -> None:
    original = write_random_model(tmp_path / "original", "llama", tie_word_embeddings=True)
    target = convert(write_gguf(original, tmp_path / "m.gguf", kind=kind))
    exact, rough = load_file(original / "model.safetensors"), load_file(target / "model.safetensors")
    assert exact.keys() == rough.keys()
    for name, values in exact.items():
        assert rough[name].dtype == np.float32
        np.testing.assert_allclose(rough[name], values, atol=tolerance)


@torch.no_grad()
def test_every_layer_sees_as_far_as_the_window(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "mistral", sliding_window=5)
    target = convert(write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_sliding_window(5)))
    config = load_decoder(target, "cpu", torch.float32).config
    assert (config.family, config.sliding_window) == ("mistral", 5)
    torch.testing.assert_close(logits(target), reference_model(original)(IDS).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("part", "name"), [("attn_output", "o_proj"), ("attn_q", "q_proj")])
def test_a_bias_that_is_not_stored_is_zero(tmp_path: Path, part: str, name: str) -> None:
    original = write_random_model(tmp_path / "original", "llama", attention_bias=True)

    def without(target: str, values: Array) -> Array | None:
        return None if target == f"blk.1.{part}.bias" else values

    target = convert(write_gguf(original, tmp_path / "m.gguf", change=without))
    reference = reference_model(original)
    reference.get_parameter(f"model.layers.1.self_attn.{name}.bias").zero_()
    torch.testing.assert_close(logits(target), reference(IDS).logits, atol=1e-4, rtol=1e-4)


def test_the_tokenizer_comes_along(originals: dict[str, Path], tmp_path: Path) -> None:
    original = originals["llama"]
    ours, theirs = Tokenizer(convert(write_gguf(original, tmp_path / "m.gguf"))), Tokenizer(original)
    for text in ("When Mary and John went to the store", "naïve 我 🎉 1234\n\n  x<|endoftext|>"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.token_strings(range(1000)) == theirs.token_strings(range(1000))


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("blk.0.odd.weight", (4,)),
        ("blk.3.attn_norm.weight", (32,)),  # a layer more than block_count says
        ("blk.0.attn_norm.bias", (32,)),
        ("blk.0.attn_q_norm.weight", (8,)),
        ("blk.0.attn_rot_embd.weight", (4,)),
        ("output_norm.bias", (32,)),
        ("output.bias", (1000,)),
        ("token_embd_norm.weight", (32,)),
        ("position_embd.weight", (64, 32)),
        ("rope_factors_long.weight", (4,)),
        ("rope_factors_short.weight", (4,)),
    ],
)
def test_a_tensor_without_a_place(
    originals: dict[str, Path], tmp_path: Path, tensor: str, shape: tuple[int, ...]
) -> None:
    original = originals["llama"]
    values = np.ones(shape, np.float32)
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_tensor(tensor, values))
    with pytest.raises(UnsupportedModel, match=rf"m\.gguf: tensor {tensor} has no place in a llama model"):
        convert(path)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3"])
def test_factors_of_frequencies_belong_to_llama_alone(
    originals: dict[str, Path], tmp_path: Path, family: str
) -> None:
    original = originals[family]
    values = np.ones(4, np.float32)
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_tensor("rope_freqs.weight", values))
    with pytest.raises(UnsupportedModel, match=r"tensor rope_freqs\.weight has no place"):
        convert(path)


@pytest.mark.parametrize(
    ("family", "tensor"),
    [
        ("llama", "token_embd.weight"),
        ("llama", "output_norm.weight"),
        ("llama", "blk.2.ffn_gate.weight"),
        ("qwen3", "blk.1.attn_k_norm.weight"),
        ("gpt2", "blk.0.attn_qkv.bias"),
        ("gpt2", "position_embd.weight"),
    ],
)
def test_a_missing_tensor(originals: dict[str, Path], tmp_path: Path, family: str, tensor: str) -> None:
    original = originals[family]
    path = write_gguf(
        original, tmp_path / "m.gguf", change=lambda name, values: None if name == tensor else values
    )
    with pytest.raises(ModelBroken, match=rf"m\.gguf: tensor {tensor} is missing"):
        convert(path)


@pytest.mark.parametrize(
    ("family", "tensor", "shape"),
    [
        ("llama", "blk.1.attn_k.weight", r"\[24, 32\]; .* \[16, 32\]"),
        ("gpt2", "position_embd.weight", r"\[72, 32\]; .* \[64, 32\]"),
        ("qwen2", "blk.0.attn_q.bias", r"\[40\]; .* \[32\]"),
    ],
)
def test_a_misshapen_tensor(
    originals: dict[str, Path], tmp_path: Path, family: str, tensor: str, shape: str
) -> None:
    original = originals[family]
    path = write_gguf(
        original,
        tmp_path / "m.gguf",
        change=lambda name, values: np.concatenate((values, values[:8])) if name == tensor else values,
    )
    with pytest.raises(ModelBroken, match=rf"m\.gguf: {tensor} has shape {shape}"):
        convert(path)


def test_numbers_that_are_none(originals: dict[str, Path], tmp_path: Path) -> None:
    original = originals["llama"]

    def spoil(name: str, values: Array) -> Array:
        if name == "blk.1.ffn_down.weight":
            values[3, 4] = np.nan
        return values

    with pytest.raises(
        ModelBroken, match=r"m\.gguf: blk\.1\.ffn_down\.weight holds values that are not finite"
    ):
        convert(write_gguf(original, tmp_path / "m.gguf", change=spoil))


def test_a_kind_that_cannot_be_dequantized_is_named_first(originals: dict[str, Path], tmp_path: Path) -> None:
    original = originals["llama"]

    def whole_numbers(name: str, values: Array) -> Array:
        return values.astype(np.int32) if name == "blk.2.attn_v.weight" else values

    path = write_gguf(original, tmp_path / "m.gguf", change=whole_numbers, edit=setting(odd=1))
    with pytest.raises(
        UnsupportedModel, match=r"m\.gguf: blk\.2\.attn_v\.weight is stored as I32, not read here"
    ):
        convert(path)


@pytest.mark.parametrize(
    ("keys", "change"),
    [
        ({"odd.key": 1}, None),
        ({"attention.head_count": 5}, None),
        ({"attention.key_length": 2**31, "rope.dimension_count": 2**31}, None),
        ({"attention.key_length": 7, "rope.dimension_count": 7}, None),
        ({}, lambda name, values: None if name == "blk.2.ffn_up.weight" else values),
    ],
)
def test_nothing_is_written_of_what_is_refused(
    originals: dict[str, Path], tmp_path: Path, keys: dict[str, object], change: Any
) -> None:
    original = originals["llama"]
    path = write_gguf(original, tmp_path / "m.gguf", edit=setting(**keys), change=change)
    target = tmp_path / "converted"
    target.mkdir()
    with pytest.raises(ModelError):
        convert_gguf(path, target)
    assert list(target.iterdir()) == []

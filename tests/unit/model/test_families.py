"""Configurations as transformers of all ages write them, and those that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import Rotary
from tdb_server.model.families import decoder_config_from_hugging_face
from tdb_server.model.rotary import inverse_frequencies, rotary_frequencies

GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "n_inner": None,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "vocab_size": 1000,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rotary_of(entries: dict[str, Any]) -> Rotary:
    found = decoder_config_from_hugging_face(entries).rotary
    assert found is not None
    return found


def test_gpt2_defaults() -> None:
    config = decoder_config_from_hugging_face(GPT2)
    assert (config.n_neurons, config.d_head, config.n_heads_per_group) == (3072, 64, 1)
    assert (config.activation, config.norm, config.tied_embeddings) == ("gelu_tanh", "layer_norm", True)
    assert config.rotary is None


def test_llama_defaults() -> None:
    config = decoder_config_from_hugging_face(LLAMA)
    assert config.rotary is not None
    assert (config.n_key_value_heads, config.d_head, config.rotary.theta) == (4, 16, 10000.0)
    assert (config.tied_embeddings, config.qkv_bias, config.sliding_window) == (False, False, None)


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"type": "llama3"} | {k: v for k, v in LLAMA3.items() if k != "rope_type"},
        },
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
    ],
)
def test_old_and_new_ways_to_write_rotary_parameters(entries: dict[str, Any]) -> None:
    old, new = (
        rotary_of(LLAMA | block) for block in (entries, {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}})
    )
    assert old.theta == 5e5
    assert torch.equal(inverse_frequencies(old), inverse_frequencies(new))


def test_default_rotation_turns_the_first_pair_by_one_radian_a_token() -> None:
    rotary = rotary_of(LLAMA | {"rope_scaling": {"rope_type": "default"}})
    cosine, sine = rotary_frequencies(rotary, 256, torch.device("cpu"))
    assert cosine.shape == sine.shape == (256, 16)
    torch.testing.assert_close(cosine[:, 0], torch.arange(256.0).cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sine[:, 8], torch.arange(256.0).sin(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("scaling", "error"),
    [
        ({"rope_type": "yarn", "factor": 2.0}, UnsupportedModel),
        ({"type": "dynamic", "factor": 2.0}, UnsupportedModel),
        ({"rope_type": None, "factor": 2.0}, UnsupportedModel),
        ({"type": "", "factor": 2.0}, UnsupportedModel),
        ({"rope_type": "linear"}, ModelBroken),
        ({"rope_type": "linear", "factor": 0}, ModelBroken),
        (LLAMA3 | {"low_freq_factor": None}, ModelBroken),
        (LLAMA3 | {"low_freq_factor": 4.0}, ModelBroken),
    ],
)
def test_rotary_scaling_that_is_refused(scaling: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        rotary_frequencies(rotary_of(LLAMA | {"rope_scaling": scaling}), 256, torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type None"),
        (
            {"model_type": "mamba"},
            "model_type 'mamba' is not supported; gemma2, .*gpt2, gpt_neox, .*qwen3, stablelm are",
        ),
        (GPT2 | {"activation_function": "relu"}, "activation_function 'relu'"),
        (LLAMA | {"hidden_act": ["silu"]}, "hidden_act"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
        (GPT2 | {"is_causal": False}, "is_causal False"),
        (LLAMA | {"is_causal": None}, "is_causal None"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantized"),
        (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ between layers"),
        (
            LLAMA | {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"]},
            "in some of Mistral's layers",
        ),
        (LLAMA | {"model_type": "mistral", "layer_types": ["chunked_attention"] * 2}, "layer_types"),
        (LLAMA | {"model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, "linear_attention"),
        (LLAMA | {"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"),
        (LLAMA | {"model_type": "gpt_oss"}, "model_type 'gpt_oss'"),
        (
            LLAMA | {"model_type": "gemma2", "use_bidirectional_attention": True},
            "use_bidirectional_attention",
        ),
        (LLAMA | {"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation 'relu'"),
        (LLAMA | {"model_type": "gemma2", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"model_type": "gemma3_text", "attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        (
            LLAMA | {"model_type": "gemma3_text", "rope_parameters": {"rope_theta": 1e4}},
            r"rope_parameters\.rope",
        ),
        (LLAMA | {"model_type": "olmo3", "rope_parameters": {"chunked": {"rope_theta": 1e4}}}, "chunked"),
        (LLAMA | {"model_type": "olmo3", "rope_parameters": {"rope_theta": 1e4}}, "is 500000.0 and 500000.0"),
        (
            LLAMA | {"model_type": "olmo3", "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            "factor 4.0 .* is None and None",
        ),
        (LLAMA | {"model_type": "gpt_neox", "head_dim": 32}, "head_dim 32 .* = 16 wide"),
        (LLAMA | {"model_type": "stablelm", "head_dim": 8}, "head_dim 8 .* = 16 wide"),
        (LLAMA | {"model_type": "stablelm", "use_parallel_residual": True}, "use_parallel_residual"),
        (LLAMA | {"model_type": "stablelm", "qk_layernorm": True}, "qk_layernorm"),
        (LLAMA | {"transformers_weights": "other.safetensors"}, r"transformers_weights 'other\.safetensors'"),
    ],
)
def test_unsupported(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        decoder_config_from_hugging_face(config)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_size": None}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "1000"}, "vocab_size"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "cannot share"),
        ({"head_dim": 7}, "even head width"),
        ({"model_type": "gpt_neox", "rotary_pct": 0.2}, "even head width"),
        ({"model_type": "gpt_neox", "rotary_pct": 1.5}, "even head width"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1}, "attn_logit_softcapping must be a number"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0.0}, "attn_logit_softcapping .* divides by it"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 0}, "final_logit_softcapping .* null for"),
        ({"model_type": "granite", "residual_multiplier": 0.0}, "residual_multiplier must be a number"),
        (
            {"model_type": "granite", "residual_multiplier": float("-inf")},
            "residual_multiplier must be a number",
        ),
        ({"model_type": "granite", "attention_multiplier": -1.0}, "attention_multiplier must be a number"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a number"),
        ({"model_type": "gemma2", "sliding_window": None}, "no sliding_window is in force"),
        ({"model_type": "gemma3", "text_config": 5}, "text_config must be an object"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0]}}, "needs 8 numbers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_parameters": [1]}, "must be an object"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "no sliding_window is in force"),
        (
            {"model_type": "mistral", "sliding_window": None, "layer_types": ["sliding_attention"] * 2},
            "no sliding_window is in force",
        ),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 3}, "one kind for each"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": "false"}, "attention_bias must be true or false"),
        ({"rope_parameters": LLAMA3, "original_max_position_embeddings": None}, "original_max_position"),
    ],
)
def test_broken(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelBroken, match=message):
        inverse_frequencies(rotary_of(LLAMA | entries))


@pytest.mark.parametrize(
    ("entries", "window"),
    [
        ({"model_type": "mistral"}, 4096),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 12}, 12),
        ({"model_type": "qwen2", "sliding_window": 12}, None),
        (
            {"model_type": "qwen2", "sliding_window": 12, "use_sliding_window": True},
            None,
        ),  # starts at layer 28
        (
            {"model_type": "qwen2", "sliding_window": 12, "use_sliding_window": True, "max_window_layers": 0},
            12,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 12,
                "use_sliding_window": True,
                "layer_types": ["full_attention"] * 2,
            },
            None,
        ),
    ],
)
def test_sliding_windows(entries: dict[str, Any], window: int | None) -> None:
    assert decoder_config_from_hugging_face(LLAMA | entries).sliding_window == window


def test_windows_and_rotations_by_layer() -> None:
    gemma3 = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window": 9}
    config = decoder_config_from_hugging_face(
        gemma3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    )
    assert [layer for layer, window in enumerate(config.windows) if window is None] == [5, 11]
    local, everywhere = config.rotary_of(0), config.rotary_of(5)
    assert local is not None
    assert everywhere is not None
    assert (local.theta, everywhere.theta) == (1e4, 1e6)
    torch.testing.assert_close(inverse_frequencies(everywhere)[0], torch.tensor(1 / 8))
    torch.testing.assert_close(inverse_frequencies(local)[0], torch.tensor(1.0))
    assert decoder_config_from_hugging_face(LLAMA | {"model_type": "gemma2"}).windows == (4096, None)
    assert decoder_config_from_hugging_face(LLAMA).windows == ()


@pytest.mark.parametrize("model_type", ["olmo3", "gemma3_text"])
def test_rotary_parameters_outside_the_kinds_of_layers_may_say_what_is_so_anyway(model_type: str) -> None:
    config = LLAMA | {"model_type": model_type}
    plain = decoder_config_from_hugging_face(config)
    flat: dict[str, Any] = {"rope_type": "default"}
    if model_type == "olmo3":  # Gemma 3 has another base in layers that slide
        flat["rope_theta"] = 500_000.0
    assert decoder_config_from_hugging_face(config | {"rope_parameters": flat}) == plain


@pytest.mark.parametrize("model_type", ["gpt_neox", "stablelm"])
def test_a_width_of_heads_that_is_so_anyway(model_type: str) -> None:
    config = LLAMA | {"model_type": model_type}
    plain = decoder_config_from_hugging_face(config)
    for width in (16, None):
        assert decoder_config_from_hugging_face(config | {"head_dim": width}) == plain


def test_prompts_end_where_longrope_changes(caplog: pytest.LogCaptureFixture) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    block = {"rope_scaling": {"type": "longrope", **factors}, "original_max_position_embeddings": 64}
    config = decoder_config_from_hugging_face(LLAMA | {"model_type": "phi3"} | block)
    assert config.context_length == 64
    assert "prompts may have 64 tokens, not 256" in caplog.text
    same = block["rope_scaling"] | {"long_factor": [1.0] * 8}
    other = decoder_config_from_hugging_face(LLAMA | {"model_type": "phi3"} | block | {"rope_scaling": same})
    assert other.context_length == 256


def test_the_decoder_of_a_folder_that_sees_images_has_its_own_defaults() -> None:
    found = decoder_config_from_hugging_face(
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 34}}
    )
    assert (found.d_model, found.n_layers, found.vocabulary_size) == (2304, 34, 262_208)
    assert (found.context_length, found.tied_embeddings, found.d_head) == (131_072, True, 256)

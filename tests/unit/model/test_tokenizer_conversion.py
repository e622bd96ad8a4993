"""Tokenizers of model folders, beside what `transformers.AutoTokenizer` makes of the same folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tdb_server.errors import ModelBroken
from tdb_server.model.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate
from tdb_server.model.sources import resolve_model
from tdb_server.model.tokenizer import Tokenizer
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from tests.random_models import FIXTURES

USER = {
    "content": "<|user|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer-debugger"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A llama with GPT-2's kind of tokenizer, 1000 tokens in the file and 1004 in the model."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((FIXTURES / "tiny-llama-c" / "config.json").read_text())
    write(folder, "config.json", config | {"vocab_size": 1004})
    shutil.copyfile(FIXTURES / "tiny-llama-c" / "tokenizer.json", folder / "tokenizer.json")
    return folder


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    change(content)
    write(folder, name, content)


def ours(folder: Path) -> Tokenizer:
    return Tokenizer(resolve_model(str(folder)).tokenizer_path)


def check_against_transformers(folder: Path, *texts: str) -> Tokenizer:
    tokenizer, judge = ours(folder), AutoTokenizer.from_pretrained(folder)
    for text in texts:
        assert tokenizer.encode(text) == judge(text, add_special_tokens=False).input_ids, text
        with_bos = judge(text).input_ids
        assert with_bos == [tokenizer.bos_token_id] * tokenizer.adds_bos + tokenizer.encode(text), text
    return tokenizer


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": PLAIN | {"added_tokens_decoder": {"1000": USER}}},
        {"tokenizer_config.json": PLAIN, "added_tokens.json": {"<|user|>": 1000}},
        {"added_tokens.json": {"<|user|>": 1000}},
        {"tokenizer_config.json": PLAIN | {"additional_special_tokens": ["<|user|>"]}},
        {"tokenizer_config.json": PLAIN | {"extra_special_tokens": {"user_token": "<|user|>"}}},
        {
            "special_tokens_map.json": {"additional_special_tokens": ["<|user|>"]},
            "tokenizer_config.json": PLAIN,
        },
        {"special_tokens_map.json": {"bos_token": USER}},
    ],
)
def test_tokens_that_other_files_add(folder: Path, files: dict[str, Any]) -> None:
    assert ours(folder).encode("<|user|>") != [1000]
    for name, content in files.items():
        write(folder, name, content)
    tokenizer = check_against_transformers(folder, "a<|user|> b", "<|user|>", "x <|user|>", "a<|USER|>")
    assert tokenizer.encode("a<|user|> b") == [64, 1000, 275]
    assert tokenizer.token_strings([64, 1000, 275]) == ["a", "<|user|>", " b"]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "normalized", "single_word"])
def test_flags_of_added_tokens(folder: Path, flag: str) -> None:
    added = {"1000": USER | {flag: True}, "1001": USER | {"content": "tok", "special": False, flag: True}}
    write(folder, "tokenizer_config.json", PLAIN | {"added_tokens_decoder": added})
    tokenizer = check_against_transformers(
        folder, "a <|user|>  b", "a<|user|>b", "token", "a tok b", " tok\n", "TOK", "tok", "<|user|><|user|>"
    )
    assert 1000 in tokenizer.encode("a <|user|>  b")


def test_texts_about_special_tokens_may_be_split(folder: Path) -> None:
    write(folder, "tokenizer_config.json", PLAIN | {"split_special_tokens": True})
    assert 999 not in check_against_transformers(folder, "a<|endoftext|>b").encode("<|endoftext|>")


def test_what_is_for_chats_alone_changes_nothing(folder: Path) -> None:
    expected = Tokenizer(folder).encode("a <|endoftext|> b")
    write(
        folder,
        "tokenizer_config.json",
        {"chat_template": "{{ nothing", "model_max_length": 3, "padding_side": "left"},
    )
    (folder / "chat_template.jinja").write_text("{% broken")
    assert check_against_transformers(folder, "a b c d e f").encode("a <|endoftext|> b") == expected


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": False},
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "bos_token": "<|endoftext|>"},
        {"tokenizer_class": "NoSuchTokenizer"},
    ],
)
def test_classes_count_as_transformers_counts_them(
    folder: Path, family: str, configuration: dict[str, object]
) -> None:
    edit(folder, "config.json", lambda config: config.update(model_type=family))
    write(folder, "tokenizer_config.json", configuration)
    check_against_transformers(folder, "When Mary's 1234", " a  b\n\n c", "Cafe\u0301 l'été 'LL we'LL", "")


def test_a_class_that_cannot_spell_the_vocabulary_is_not_taken(folder: Path) -> None:
    edit(folder, "config.json", lambda config: config.update(model_type="gemma"))
    assert ours(folder).encode("When Mary") == Tokenizer(folder).encode("When Mary")


def test_a_class_that_cuts_text_in_another_way_is_not_taken(folder: Path) -> None:
    """GPT-2's class would join bytes to words of its merges, of which there are none, and find no token."""
    stored = RawTokenizer(WordLevel({"<unk>": 0, "ĠMary": 1, "ĠJohn": 2}, unk_token="<unk>"))
    stored.pre_tokenizer, stored.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    stored.save(str(folder / "tokenizer.json"))
    edit(folder, "config.json", lambda config: config.update(model_type="gpt2"))
    assert ours(folder).encode(" Mary John drink") == Tokenizer(folder).encode(" Mary John drink")
    assert list(ours(folder).encode(" John Mary drink")) == [2, 1, 0]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"1002": USER}}},
            r"tokenizer_config\.json: token '<\|user\|>' is 1002 there, and becomes 1000 with",
        ),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"5": USER}}},
            r"tokenizer_config\.json: token 5 is '<\|user\|>' there, and '&' with tokenizer\.json",
        ),
        (
            {"added_tokens.json": {"<|user|>": 999}},
            r"added_tokens\.json: token 999 is '<\|user\|>' there, and '<\|endoftext\|>' with",
        ),
        (
            {"added_tokens.json": {"<|user|>": 70_000}},
            r"added_tokens\.json: token '<\|user\|>' is 70000 there, and becomes 1000 with tokenizer\.json",
        ),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"1001": USER, "1000": USER}}},
            r"tokenizer_config\.json: token '<\|user\|>' is 1001 there, and becomes 1000 with",
        ),
    ],
)
def test_contradictions_are_refused(folder: Path, files: dict[str, Any], message: str) -> None:
    for name, content in files.items():
        write(folder, name, content)
    with pytest.raises(ModelBroken, match=message):
        resolve_model(str(folder))


def test_a_file_that_transformers_does_not_read_is_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, "tokenizer_config.json", PLAIN | {"added_tokens_decoder": {"1000": USER}})
    write(folder, "added_tokens.json", {"<|user|>": 1001})
    for _ in range(2):  # converted, and used again
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert ours(folder).encode("<|user|>") == [1000]
        assert "added_tokens.json: token '<|user|>' is 1001 there" in caplog.text
        assert "transformers does not read this file here" in caplog.text


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["[]", "{", '"x"', "\x00"])
def test_broken_files_are_called_by_their_names(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ModelBroken, match=name.replace(".", r"\.")):
        resolve_model(str(folder))


def test_code_of_the_folder_is_not_run(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}})
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ModelBroken, match="transformers cannot read the tokenizer"):
        resolve_model(str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "configuration",
    [{"bos_token": 5}, {"added_tokens_decoder": [1]}, {"bos_token": "\ud83d"}, {"tokenizer_class": 3}],
)
def test_what_transformers_cannot_read(folder: Path, configuration: dict[str, object]) -> None:
    write(folder, "tokenizer_config.json", configuration)
    with pytest.raises(ModelBroken, match=r"tokenizer of tokenizer\.json, tokenizer_config\.json: "):
        resolve_model(str(folder))


@pytest.mark.parametrize("says", [True, False])
def test_the_post_processor_says_whether_a_token_is_put_in_front(
    folder: Path, says: bool, caplog: pytest.LogCaptureFixture
) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [999], "tokens": ["<|endoftext|>"]}
        },
    }
    edit(folder, "tokenizer.json", lambda content: content.update(post_processor=template if says else None))
    write(folder, "tokenizer_config.json", {"bos_token": "<|endoftext|>", "add_bos_token": not says})
    tokenizer = check_against_transformers(folder, "a b", "", "<|endoftext|>a")
    assert (tokenizer.adds_bos, tokenizer.bos_token_id) == (says, 999)
    assert "add_bos_token" in caplog.text


def test_a_token_for_the_beginning_that_the_model_does_not_have(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"bos_token": "<|user|>"})
    assert ours(folder).bos_token_id == 1000
    edit(folder, "config.json", lambda config: config.update(vocab_size=1000))
    assert ours(folder).bos_token_id is None


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda content: content["added_tokens"][0].update(lstrip=True)),
        ("config.json", lambda config: config.update(model_type="qwen2")),
        ("tokenizer_config.json", lambda content: content.update(bos_token="<|endoftext|>")),
        ("special_tokens_map.json", lambda content: content.update(eos_token="<|endoftext|>")),
        ("added_tokens.json", lambda content: content.update({"<|user|>": 1000})),
        ("vocab.json", lambda content: content.update(a=0)),
    ],
)
def test_a_change_of_any_file_converts_anew(folder: Path, name: str, change: Any) -> None:
    if not (folder / name).exists():
        write(folder, name, {})
    before = resolve_model(str(folder)).tokenizer_path
    assert resolve_model(str(folder)).tokenizer_path == before
    edit(folder, name, change)
    assert resolve_model(str(folder)).tokenizer_path != before


def test_no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelBroken, match=r"model: no tokenizer\.json, nor another vocabulary"):
        resolve_model(str(folder))
    (folder / "tokenizer.model").write_bytes(b"no vocabulary")
    with pytest.raises(
        ModelBroken, match=r"tokenizer\.model: it needs the package sentencepiece|transformers cannot read"
    ):
        resolve_model(str(folder))


def test_chat_templates_are_kept_with_the_tokens_they_name(folder: Path) -> None:
    write(folder, "tokenizer_config.json", PLAIN | {"bos_token": "<|endoftext|>", "chat_template": "{{ 1 }}"})
    assert ours(folder).chat_template == ChatTemplate("{{ 1 }}", {"bos_token": "<|endoftext|>"})
    (folder / "chat_template.jinja").write_text("{{ 2 }}")  # made anew; transformers takes this one
    template = ours(folder).chat_template
    assert template is not None
    assert template.source == AutoTokenizer.from_pretrained(folder).chat_template == "{{ 2 }}"


def test_of_several_templates_the_default_counts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = [{"name": "rag", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    write(folder, "tokenizer_config.json", PLAIN | {"chat_template": others})
    with caplog.at_level(logging.WARNING):
        assert ours(folder).chat_template is None
    assert "of the chat templates rag, tool_use none is named default: it is left out" in caplog.text
    default = {"name": "default", "template": "{{ 3 }}"}
    write(folder, "tokenizer_config.json", PLAIN | {"chat_template": [*others, default]})
    assert ours(folder).chat_template == ChatTemplate("{{ 3 }}", {})


def test_templates_without_end_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "chat_template.jinja").write_text("é" * (MAX_TEMPLATE_BYTES // 2) + "x")
    with caplog.at_level(logging.WARNING):
        assert ours(folder).chat_template is None
    assert "the chat template has more than" in caplog.text


@pytest.mark.parametrize("is_put_in_front", [False, True])
def test_special_tokens_that_are_too_long_to_be_sent(folder: Path, is_put_in_front: bool) -> None:
    """Whether a configuration names it or the tokenizer puts it in front of texts."""
    long = "<" + 6_000_000 * "s"
    token = {"id": 1000, "content": long, "special": True, "normalized": False}
    token |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    edit(folder, "tokenizer.json", lambda one: one["added_tokens"].append(token))
    if is_put_in_front:
        front = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"b": {"id": "b", "ids": [1000], "tokens": [long]}},
        }
        edit(folder, "tokenizer.json", lambda one: one.update(post_processor=front))
    else:
        write(folder, "tokenizer_config.json", PLAIN | {"bos_token": long})
    with pytest.raises(
        ModelBroken, match=r"tokenizer\.json: special tokens .* 65536 bytes in all; .* bos_token, has 6000010"
    ):
        resolve_model(str(folder))

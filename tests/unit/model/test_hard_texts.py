"""Texts that tokenizers stumble over, beside what `transformers.AutoTokenizer` makes of the same files.

Seven kinds of tokenizer, trained here on a few lines: as GPT-2, Llama 3, DBRX (OLMo 2, Phi-4), Qwen, Llama 2,
Phi-3 and Gemma have them. As GGUF files they must cut text as the folder does from which they come.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from tdb_server.model.gguf_tokenizer import write_tokenizer
from tdb_server.model.sources import default_gguf, resolve_model
from tdb_server.model.tokenizer import Tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as RawTokenizer
from transformers import AutoTokenizer

HARD_TEXTS = [
    "",
    " ",
    "   ",
    "When Mary and John went to the store, John gave a drink to",
    " leading and trailing  ",
    "a  b   c    d\te\t\tf \t g",
    "one\ntwo\n\nthree\n \n four\r\nfive\r\n\r\nsix\rseven",
    "\n",
    "\n\n  indented\n\tand tabbed",
    "1 12 123 1234 12345678901234567890 3.14159 1,000,000 ½ ² ٣٤٥ １２３",
    "I'm we've they'd he'll it's don't you're",
    "I'M WE'VE THEY'D HE'LL IT'S DON'T YOU'RE o'clock 'tis ''quoted''",
    "I’m we’ve “curly” quotes",
    "camelCase snake_case SCREAMING_CASE kebab-case HTTPServer2",
    "def f(x):\n    return x**2  # done\n",
    "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 e\u0301 n\u0303 \u212b \u1e9b\u0323 ﬁ ﷺ",
    "Cafe\u0301 vs Caf\u00e9; A\u030a\u0327 \u0301lonely",
    "我们 一个 日本語テキスト 한국어 ไทย हिन्दी বাংলা",
    "שלום עולם مرحبا بالعالم \u202bmixed\u202c ltr",
    "\u00a0nbsp\u2003em\u200bzero\u200d\ufeffbom\u2028line\u3000wide",
    "nul\x00byte \x01\x02\x1b[31m\x7f\x80\x9f",
    "<s> <unk> </s> <s>glued</s> a<unk>b <pad>",
    "<|user|>hi<|end|> <|user|> spaced <|end|>\n<|user|>\n<|USER|> <|user |>",
    "x<|user|>y <|user|><|user|>  <|user|>  ",
    "toktok token tok. .tok Tok TOK",
    "▁to ▁ ▁▁ a▁b <0x0A> <0x41> Ġto Ċ",
    "ab" * 600,
    "supercalifragilisticexpialidocious" * 20,
    "word " * 300,
    "!!!???...---===***   ///\\\\ @#$%^&*()[]{}|~`",
    "\ud7ff\ue000\uffff\U0010ffff",
]

CORPUS = [
    "When Mary and John went to the store, John gave a drink to Mary.",
    "the theory of the other mother, they're there; it's what we've said. I'LL GO, I'm here",
    "    return value\n\n\tfor i in range(10):\n        print(i, 1234, 'twelve')",
    "naïve café résumé façade Ångström übermut 我们 日本 한국 привет мир 👍 👍🏽",
    "store stored stores restore to token tokens tokenizer to and and and then",
] * 20

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
_BY_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(rules: str) -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE(ignore_merges=rules == "llama-bpe"))
    if rules == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        digits = r"\p{N}" if rules == "qwen2" else r"\p{N}{1,3}"
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_BY_WORDS % digits), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if rules == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*SPECIAL, "<|endoftext|>")])
    tokenizer.add_tokens([AddedToken("toktok", normalized=False)])
    if rules == "llama-bpe":
        begin = tokenizer.token_to_id("<s>")
        template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return tokenizer


def sentence_piece(has_prefix: bool, strips: bool = False) -> RawTokenizer:
    """Merges learned as SentencePiece has them: all that make a piece, best piece first.

    Args:
        has_prefix: whether a space is put in front.
        strips: whether special tokens take the spaces behind them, but for the first two, as Phi-3's do.
    """
    learner = RawTokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().get)
    pieces = [*SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *learned, *SPECIAL[3:]]
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = RawTokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    before = [normalizers.Prepend("▁"), spaces]
    tokenizer.normalizer = normalizers.Sequence(before) if has_prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=strips and token not in SPECIAL[:2])
            for token in SPECIAL
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


RULES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "dbrx": "dbrx", "qwen2": "qwen2"}
CLASSES = {
    "gpt2": {"tokenizer_class": "GPT2Tokenizer"},
    "llama3": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    "dbrx": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer"},
    "llama2": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"},
    "llama2-legacy": {"tokenizer_class": "LlamaTokenizer", "legacy": True},
    "phi3": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"},
    "gemma": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"},
}


@pytest.fixture(scope="module", params=CLASSES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    raw = byte_level(RULES[kind]) if kind in RULES else sentence_piece(kind != "gemma", kind == "phi3")
    raw.save(str(folder / "tokenizer.json"))
    family = kind if kind in ("gpt2", "phi3", "qwen2") else "llama"
    configuration = {"model_type": family, "vocab_size": raw.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "tokenizer_config.json").write_text(json.dumps(CLASSES[kind]))
    return folder


def check(ours: Tokenizer, judge: Any, texts: list[str]) -> None:
    for text in texts:
        ids = judge(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == ids, repr(text)
        front = [ours.bos_token_id] if ours.adds_bos else []
        assert judge(text).input_ids == front + ids, repr(text)
        said = judge.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == said, repr(text)


def test_folders(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check(
        Tokenizer(resolve_model(str(folder)).tokenizer_path),
        AutoTokenizer.from_pretrained(folder),
        HARD_TEXTS,
    )


def test_vocabulary_and_merges_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    raw = json.loads(byte_level("gpt-2").to_str())
    added = {token["content"]: token["id"] for token in raw["added_tokens"]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "vocab.json").write_text(json.dumps(raw["model"]["vocab"]))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    merges = [" ".join(merge) for merge in raw["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    ours = Tokenizer(resolve_model(str(tmp_path)).tokenizer_path)
    check(ours, AutoTokenizer.from_pretrained(tmp_path), HARD_TEXTS)
    assert ours.token_strings(added.values()) == list(added)


def metadata_of(folder: Path, kind: str) -> dict[str, Any]:
    """The keys that llama.cpp's conversion writes for a folder's tokenizer."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = raw["model"]["vocab"] | {token["content"]: token["id"] for token in raw["added_tokens"]}
    special = {token["content"]: token["special"] for token in raw["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [(3 if special[token] else 4) if token in special else 1 for token in tokens]
    metadata: dict[str, Any] = {
        "general.architecture": json.loads((folder / "config.json").read_text())["model_type"],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": vocabulary["<s>"],
        "tokenizer.ggml.add_bos_token": raw["post_processor"] is not None,
    }
    if kind in RULES:
        metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": RULES[kind]}
        return metadata | {"tokenizer.ggml.merges": [" ".join(merge) for merge in raw["model"]["merges"]]}
    metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": kind != "gemma"}
    types[0] = 2
    return metadata | {
        "tokenizer.ggml.token_type": [
            6 if re.fullmatch("<0x..>", t) else k for t, k in zip(tokens, types, strict=True)
        ],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.scores": [0.0 if k != 1 else -float(i) for i, k in enumerate(types)],
    }


def test_gguf_beside_the_folder_it_comes_from(folder: Path, tmp_path: Path) -> None:
    """A file does not say whether its tokenizer is a legacy one, so all are read as new ones."""
    kind = folder.name[:-1]
    edited = json.loads((folder / "tokenizer_config.json").read_text()) | {"legacy": False}
    folder = Path(shutil.copytree(folder, tmp_path / "original"))
    (folder / "tokenizer_config.json").write_text(json.dumps(edited))
    write_tokenizer(Path("m.gguf"), metadata_of(folder, kind), tmp_path)
    check(Tokenizer(tmp_path), AutoTokenizer.from_pretrained(folder), HARD_TEXTS)


def test_gguf_of_sentence_pieces_beside_transformers(tmp_path: Path) -> None:
    sentence_piece(has_prefix=True).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    metadata = metadata_of(tmp_path, "llama2")
    file = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    write_tokenizer(file, metadata, tmp_path)
    check(Tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf"), HARD_TEXTS)


def test_the_default_model(tmp_path: Path) -> None:
    """Its rules, SmolLM's, are GPT-2's with every digit by itself; `transformers` takes GPT-2's alone."""
    file = default_gguf()
    fields = gguf.GGUFReader(file).fields
    write_tokenizer(file, {name: field.contents() for name, field in fields.items()}, tmp_path)
    ours = Tokenizer(tmp_path)
    judge = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    check(ours, judge, [text for text in HARD_TEXTS if not re.search(r"\d|½|²", text)])
    assert ours.token_strings(ours.encode(" 1234½٣")) == [
        " ",
        "1",
        "2",
        "3",
        "4",
        "½",
        *ours.token_strings(ours.encode("٣")),
    ]

"""The tokenizer inside a GGUF file, as a tokenizer of the `tokenizers` library.

A GGUF file holds the vocabulary, and names rather than holds the rules by which text is cut before merging
(`tokenizer.ggml.pre`). Those rules are known here for the families that the decoder computes. Where a file
does not name them, only the architecture GPT-2 leaves no doubt.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tdb_server.errors import ModelBroken, TdbError, UnsupportedModel
from tdb_server.model.chat_template import chat_template_entry, refuse_long_special_tokens
from tdb_server.model.model_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, WARNINGS_FILE

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types that stand outside the merges: special tokens, and added text."""

_KEYS = "tokenizer.ggml."
_NAMED_SPECIAL = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
}
"""Keys that name special tokens, and what chat templates call these."""
_KEEP_SPACES = ("<unk>", "<s>", "<|endoftext|>")
"""Special tokens of Phi-3 behind which spaces count. Files do not say it; llama.cpp knows it, too."""
_CHANGING = ("remove_extra_whitespaces", "precompiled_charsmap")

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut text; they differ in how many digits stay together."""
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS_BY_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Mistral's Tekken cuts text: also where a small letter is followed by a capital one."""


@dataclass(frozen=True)
class _Rules:
    """How text is cut.

    Attributes:
        words: pattern of the pieces; None for GPT-2's.
        digits: GPT-2's pieces, and every digit by itself.
        composes: accents are joined with their letters first (NFC).
        takes_whole_words: a piece that is a token is not merged step by step.
    """

    words: str | None = None
    digits: bool = False
    composes: bool = False
    takes_whole_words: bool = False


_LLAMA_3 = _Rules(_WORDS % r"\p{N}{1,3}", takes_whole_words=True)
_DIGITS = _Rules(digits=True)
_QWEN_2 = _Rules(_WORDS % r"\p{N}", composes=True)
RULES = {
    "gpt-2": _Rules(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "dbrx": _Rules(_LLAMA_3.words),
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _QWEN_2,
    "stablelm2": _QWEN_2,
    "tekken": _Rules(_WORDS_BY_CASE, takes_whole_words=True),
}
"""By the name that `tokenizer.ggml.pre` gives them."""


def write_tokenizer(path: Path, metadata: dict[str, Any], folder: Path) -> None:
    """Writes what `Tokenizer` reads into an existing folder, and warnings where there are any.

    Args:
        path: the GGUF file, for messages.
        metadata: its keys and values.

    Raises:
        ModelBroken: something is missing or makes no sense.
        UnsupportedModel: another kind of tokenizer, or rules that are not known.
    """
    try:
        tokenizer, warnings = tokenizer_from_gguf(metadata)
    except KeyError as error:
        raise ModelBroken(f"{path}: {error.args[0]} is missing") from error
    except TdbError as error:
        raise type(error)(f"{path}: {error.message}") from error
    except Exception as error:  # the library raises nothing more precise
        raise ModelBroken(f"{path}: not a tokenizer: {error}") from error
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    named = _named_special(metadata, tokenizer.get_vocab_size())
    special = {_NAMED_SPECIAL[name]: tokenizer.id_to_token(one) for name, one in named.items()}
    refuse_long_special_tokens(path, special)
    template, more_warnings = chat_template_entry(metadata.get("tokenizer.chat_template"), special)
    warnings += [f"{line}: it is left out" for line in more_warnings]
    configuration = {"bos_token": special.get("bos_token"), **template}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(configuration), encoding="utf-8")
    if warnings:
        text = "".join(f"{path}: {line}\n" for line in warnings)
        (folder / WARNINGS_FILE).write_text(text, encoding="utf-8")


def tokenizer_from_gguf(metadata: dict[str, Any]) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a GGUF file's keys and values, and warnings about what the file does not say.

    Raises:
        KeyError: the vocabulary, its scores or the merges are missing.
        ModelBroken: a value makes no sense.
        UnsupportedModel: another kind of tokenizer, or rules that are not known.
    """
    tokens = _tokens(metadata)
    named = _named_special(metadata, len(tokens))
    kind = metadata[f"{_KEYS}model"]
    changing = [key for key in metadata if key.startswith(f"{_KEYS}normalizer.")]
    if kind == "llama":
        changing += [f"{_KEYS}{name}" for name in _CHANGING if metadata.get(_KEYS + name)]
    if changing:
        raise UnsupportedModel(f"{changing[0]} changes texts before they are cut, which is not known here")
    warnings: list[str] = []
    is_phi = metadata.get("general.architecture") == "phi3" and kind == "llama"
    if kind == "gpt2":
        rules, warnings = _rules(metadata)
        tokenizer = _byte_level(tokens, _merges(metadata), rules)
    elif kind == "llama":
        tokenizer = _sentence_piece(metadata, tokens, named.get("unknown_token_id"), is_phi)
    else:
        raise UnsupportedModel(f"GGUF tokenizer {kind!r} is not supported; gpt2 and llama are")
    types = _list(metadata, "token_type", int, len(tokens)) if f"{_KEYS}token_type" in metadata else []
    added = [(tokens[token_id], True) for token_id in named.values()]
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (UNKNOWN, CONTROL, USER_DEFINED):
            added.append((token, token_type != USER_DEFINED))
    tokenizer.add_tokens(
        [
            AddedToken(
                one, special=special, normalized=_is_spaces(one), rstrip=is_phi and one not in _KEEP_SPACES
            )
            for one, special in added
        ]
    )
    bos = named.get("bos_token_id")
    if _flag(metadata, "add_bos_token", default=False):
        if bos is None:
            raise ModelBroken(f"{_KEYS}add_bos_token is true, and {_KEYS}bos_token_id is missing")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tokens[bos], "$A"], special_tokens=[(tokens[bos], bos)]
        )
    elif bos is not None and f"{_KEYS}add_bos_token" not in metadata:
        put = f"{tokens[bos]!r} is put in front of a prompt only where a call asks for it"
        warnings.append(f"{_KEYS}add_bos_token is missing: {put}")
    return tokenizer, warnings


def _is_spaces(token: str) -> bool:
    """Such as Gemma's, which are found after spaces became "▁", so that a "▁" written out counts as one."""
    return not token.strip(" ")


def _tokens(metadata: dict[str, Any]) -> list[str]:
    """The vocabulary; a token without text gets a name, as llama.cpp gives it one."""
    tokens = _list(metadata, "tokens", str)
    tokens = [token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(tokens)]
    counts = Counter(tokens)
    if len(counts) < len(tokens):
        raise ModelBroken(f"{_KEYS}tokens holds {counts.most_common(1)[0][0]!r} more than once")
    return tokens


def _named_special(metadata: dict[str, Any], n_tokens: int) -> dict[str, int]:
    """The special tokens that keys point at."""
    named = {}
    for name in _NAMED_SPECIAL:
        token_id = metadata.get(_KEYS + name)
        if token_id is None:
            continue
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < n_tokens:
            raise ModelBroken(f"{_KEYS}{name} is {token_id!r}, which is none of {n_tokens} tokens")
        named[name] = token_id
    return named


def _flag(metadata: dict[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(_KEYS + name, default)
    if not isinstance(value, bool):
        raise ModelBroken(f"{_KEYS}{name} is {value!r}, neither true nor false")
    return value


def _list(
    metadata: dict[str, Any], name: str, kind: type | tuple[type, ...], n: int | None = None
) -> list[Any]:
    """An array of the metadata, of `n` values where that is known."""
    values = metadata[_KEYS + name]
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ModelBroken(f"{_KEYS}{name} is no array, or holds something else than it should")
    if n is not None and len(values) != n:
        raise ModelBroken(f"{_KEYS}{name} has {len(values)} values for {n} tokens")
    return values


def _merges(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for merge in _list(metadata, "merges", str):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise ModelBroken(f"{_KEYS}merges holds {merge!r}, which is no pair")
        merges.append((left, right))
    return merges


def _rules(metadata: dict[str, Any]) -> tuple[_Rules, list[str]]:
    """How text is cut, and a warning where the file does not say it."""
    name = metadata.get(f"{_KEYS}pre")
    if name in RULES:
        return RULES[name], []
    if name not in (None, "", "default"):
        raise UnsupportedModel(
            f"{_KEYS}pre is {name!r}, and these rules for cutting text are not known; "
            f"{', '.join(RULES)} are. Use the model's Hugging Face folder instead"
        )
    fault = f"{_KEYS}pre is {name!r}" if name else f"{_KEYS}pre is missing"
    if metadata.get("general.architecture") == "gpt2":
        return RULES["gpt-2"], [f"{fault}: text is cut as GPT-2 cuts it"]
    raise UnsupportedModel(
        f"{fault}, so that nobody knows how this vocabulary cuts text. Name its rules: gguf-new-metadata "
        f"--pre-tokenizer NAME old.gguf new.gguf, with one of {', '.join(RULES)}; or use the model's Hugging "
        "Face folder"
    )


def _byte_level(tokens: list[str], merges: list[tuple[str, str]], rules: _Rules) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rules.takes_whole_words))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.words is None)]
    if rules.digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if rules.words is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(rules.words), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rules.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(
    metadata: dict[str, Any], tokens: list[str], unknown: int | None, is_phi: bool
) -> Tokenizer:
    """Llama 2's kind: no merges are stored, but every piece has a score, and better pieces are made first.

    Phi-3 puts a space not only in front of a text, but behind every special token, too.
    """
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    scores = _list(metadata, "scores", (float, int), len(tokens))
    if not all(map(math.isfinite, scores)):
        raise ModelBroken(f"{_KEYS}scores holds values that are not finite")
    merges = []
    for token_id, token in enumerate(tokens):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[token_id], pair) for pair in known]
    # Pieces of one score: the longer left half first. The sort is stable: else the vocabulary's order.
    merges.sort(key=lambda scored: (-scored[0], -len(scored[1][0]), -len(scored[1][1])))
    pairs, unk = [pair for _, pair in merges], None if unknown is None else tokens[unknown]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=unk, fuse_unk=True, byte_fallback=True))
    has_prefix = _flag(metadata, "add_space_prefix", default=True)
    if has_prefix and is_phi:
        steps_before = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps_before)
    elif has_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer

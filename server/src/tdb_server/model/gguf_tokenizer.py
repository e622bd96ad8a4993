"""The tokenizer inside a GGUF file, as a tokenizer of the `tokenizers` library.

A GGUF file holds the vocabulary, and names rather than holds the rules by which text is cut before merging
(`tokenizer.ggml.pre`). Those rules are known here for the families that the decoder computes.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tdb_server.errors import UnsupportedModel

CONTROL, USER_DEFINED = 3, 4
"""Token types that stand outside the merges: special tokens, and added text."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut text; they differ in how many digits stay together."""


def tokenizer_from_gguf(metadata: dict[str, Any]) -> Tokenizer:
    """Builds the tokenizer.

    Args:
        metadata: a GGUF file's keys and values.

    Raises:
        KeyError: the vocabulary or the merges are missing.
        UnsupportedModel: another kind of tokenizer.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kind = metadata["tokenizer.ggml.model"]
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentence_piece(metadata, tokens)
    else:
        raise UnsupportedModel(f"GGUF tokenizer {kind!r} is not supported; gpt2 and llama are")
    types = metadata.get("tokenizer.ggml.token_type", [])
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (CONTROL, USER_DEFINED):
            special = token_type == CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    rules = metadata.get("tokenizer.ggml.pre", "default")
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    normalizer = None
    steps: list[Any]
    match rules:
        case "default" | "gpt-2":
            steps = [by_words]
        case "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), by_words]
        case "llama-bpe" | "qwen2":
            digits = r"\p{N}{1,3}" if rules == "llama-bpe" else r"\p{N}"
            steps = [pre_tokenizers.Split(Regex(_WORDS % digits), "isolated"), bytes_alone]
            normalizer = normalizers.NFC() if rules == "qwen2" else None
        case _:
            raise UnsupportedModel(
                f"GGUF tokenizer rules {rules!r} are not known; use the model's Hugging Face folder instead"
            )
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rules == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    """Llama 2's kind: no merges are stored, but every piece has a score, and better pieces are made first."""
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    scores: list[float] = metadata["tokenizer.ggml.scores"]
    merges = []
    for token_id, token in enumerate(tokens):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[token_id], pair) for pair in known]
    merges.sort(key=lambda scored: -scored[0])  # stable: equal scores keep the vocabulary's order
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, [pair for _, pair in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    has_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if has_prefix else spaces
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer

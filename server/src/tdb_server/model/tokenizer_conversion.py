"""The tokenizer of a model folder, as `transformers` reads it, written as one `tokenizer.json`.

A folder says what its tokenizer is in up to six files, and which of them counts where they differ depends on
the tokenizer's class and on the model's family. `transformers.AutoTokenizer` knows; so it reads the folder,
once, and what it has made of the folder is kept. Its silence is not: a token to which two files give two ids
is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from tdb_server.errors import ModelBroken
from tdb_server.model.chat_template import chat_template_entry, refuse_long_special_tokens
from tdb_server.model.json_file import read_json_object
from tdb_server.model.load_failures import reason
from tdb_server.model.model_files import (
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    WARNINGS_FILE,
)
from tdb_server.model.regular_file import MAX_TOKENIZER_BYTES, is_there, refuse_unreadable
from tdb_server.model.tokenizer import is_byte_level, leading_token

ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
VOCABULARY_FILES = (TOKENIZER_FILE, "vocab.json", "tokenizer.model", "tekken.json", "tiktoken.model")
"""A folder without any of these has no tokenizer."""

_OTHER_FILES = (TOKENIZER_CONFIG_FILE, ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE)
_READ_SUFFIXES = (".json", ".txt", ".model", ".tiktoken", ".jinja")
_READ_PREFIXES = ("tokenizer", "vocab", "merges", "tekken", "tiktoken")


def has_tokenizer(folder: Path) -> bool:
    """Whether there is anything to read a tokenizer from."""
    return any(is_there(folder / name) for name in VOCABULARY_FILES)


def tokenizer_digest(folder: Path) -> bytes:
    """Of the contents of all files that decide what `convert_tokenizer` makes.

    Raises:
        ModelBroken: a file cannot be read, is none, or is too large for a tokenizer's.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        is_subfolder = path.is_dir() and path.suffix not in _READ_SUFFIXES
        is_read = path.suffix in _READ_SUFFIXES or path.name.startswith(_READ_PREFIXES)
        if not is_read or path.name == INDEX_FILE or is_subfolder:
            continue
        refuse_unreadable(path, MAX_TOKENIZER_BYTES if path.name.startswith(_READ_PREFIXES) else None)
        try:
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelBroken(f"{path}: cannot be read: {error}") from error
    return digest.digest()


def convert_tokenizer(folder: Path, target: Path) -> None:
    """Writes what `Tokenizer` reads of a model's folder into another, and warnings where there are any.

    Raises:
        ModelBroken: the tokenizer cannot be read, or its files contradict each other.
    """
    tokenizer = _read(folder)
    backend = tokenizer.backend_tokenizer
    warnings = _check_ids(folder, backend)
    bos_token, more_warnings = _beginning_of_text(folder, tokenizer.bos_token, backend)
    warnings += more_warnings
    leading = leading_token(backend)
    sent = {**tokenizer.special_tokens_map, "bos_token": bos_token}
    if leading is not None:
        sent["bos_token"] = backend.id_to_token(leading)
    vocabulary = folder / TOKENIZER_FILE
    refuse_long_special_tokens(vocabulary if vocabulary.is_file() else folder, sent)
    # The library's own way to save raises no OSError where the disk is full.
    (target / TOKENIZER_FILE).write_text(backend.to_str(pretty=True), encoding="utf-8")
    template, more_warnings = chat_template_entry(tokenizer.chat_template, tokenizer.special_tokens_map)
    warnings += [f"{folder}: {line}: it is left out" for line in more_warnings]
    configuration: dict[str, object] = {"bos_token": bos_token, **template}
    if tokenizer.split_special_tokens:
        configuration["split_special_tokens"] = True
    (target / TOKENIZER_CONFIG_FILE).write_text(json.dumps(configuration), encoding="utf-8")
    if warnings:
        (target / WARNINGS_FILE).write_text("".join(f"{line}\n" for line in warnings), encoding="utf-8")


def _read(folder: Path) -> Any:
    """A tokenizer of `transformers`, with a backend of the `tokenizers` library."""
    from tokenizers import Tokenizer as RawTokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = folder / TOKENIZER_FILE
    try:
        stored = RawTokenizer.from_file(str(path)) if path.is_file() else None
    except Exception as error:  # the library raises nothing more precise
        raise ModelBroken(f"{path}: not a tokenizer: {error}") from error
    # Read first, so that a broken one is called by its name.
    for name in (CONFIG_FILE, *_OTHER_FILES):
        _object(folder / name)
    options: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        backend = tokenizer.backend_tokenizer
        if stored is not None and not _spells_alike(stored, backend):
            # A class that spells text in another way than the file's vocabulary. `transformers` itself
            # ignores such a class where it is Llama's.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **options)
            backend = tokenizer.backend_tokenizer
    except Exception as error:  # whatever the many tokenizer classes raise
        lacks_reader = stored is None and importlib.util.find_spec("sentencepiece") is None
        if lacks_reader and (folder / "tokenizer.model").is_file():
            hint = "it needs the package sentencepiece (pip install sentencepiece), or Llama 3's tiktoken"
            raise ModelBroken(f"{folder / 'tokenizer.model'}: {hint}: {reason(error)}") from error
        read = ", ".join(one for one in (*VOCABULARY_FILES, *_OTHER_FILES) if (folder / one).is_file())
        fault = f"transformers cannot read the tokenizer of {read}: {reason(error)}"
        raise ModelBroken(f"{folder}: {fault}") from error
    if len(backend.get_vocab(with_added_tokens=False)) <= len(backend.get_added_tokens_decoder()):
        fault = f"transformers finds no vocabulary for its {type(tokenizer).__name__}"
        raise ModelBroken(f"{folder}: {fault}; save it as {TOKENIZER_FILE}")
    return tokenizer


def _spells_alike(one: Any, other: Any) -> bool:
    """Whether two tokenizers cut text by the same method: BPE, unigrams or whole words, of bytes or not."""
    return type(one.model) is type(other.model) and is_byte_level(one) == is_byte_level(other)


def _check_ids(folder: Path, backend: Any) -> list[str]:
    """Compares the ids that files give to tokens with those that came out; returns warnings about others.

    Raises:
        ModelBroken: a token has two ids, or an id has two tokens.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = {token_id: token for token, token_id in vocabulary.items()}
    stated = _stated_ids(folder)
    unread = ["vocab.json"] if TOKENIZER_FILE in stated else []
    if "added_tokens_decoder" in _object(folder / TOKENIZER_CONFIG_FILE):
        unread.append(ADDED_TOKENS_FILE)
    warnings: list[str] = []
    for name, ids in stated.items():
        others = ", ".join(other for other in stated if other != name) or "the tokens of transformers' class"
        for token, token_id in ids:
            found = vocabulary.get(token)
            if found == token_id:
                continue
            if token_id in tokens:
                fault = f"token {token_id} is {token!r} there, and {tokens[token_id]!r} with {others}"
            elif found is not None:
                fault = f"token {token!r} is {token_id} there, and becomes {found} with {others}"
            else:
                fault = f"token {token_id}, {token!r}, is named there and gets lost with {others}"
            if name not in unread:
                raise ModelBroken(f"{folder / name}: {fault}")
            warnings.append(f"{folder / name}: {fault}; transformers does not read this file here")
            break  # one token of a file is enough
    return warnings


def _stated_ids(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """By file: the ids that it gives to tokens."""
    stated: dict[str, list[tuple[str, int]]] = {}
    content: Any = _object(folder / TOKENIZER_FILE)
    if content:
        vocabulary = content["model"]["vocab"]
        stated[TOKENIZER_FILE] = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
        stated[TOKENIZER_FILE] += [(one["content"], one["id"]) for one in content.get("added_tokens", [])]
    added: Any = _object(folder / TOKENIZER_CONFIG_FILE).get("added_tokens_decoder") or {}
    stated[TOKENIZER_CONFIG_FILE] = [(token["content"], int(token_id)) for token_id, token in added.items()]
    for name in ("vocab.json", ADDED_TOKENS_FILE):
        content = _object(folder / name)
        stated[name] = list(content.items())
    return {name: ids for name, ids in stated.items() if ids}


def _beginning_of_text(folder: Path, named: str | None, backend: Any) -> tuple[str | None, list[str]]:
    """The token that the model has for the beginning of text, and warnings about files that say otherwise.

    Raises:
        ModelBroken: the token that is put in front is none of the model's.
    """
    warnings = []
    for name in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE):
        other: Any = _object(folder / name).get("bos_token")
        other = other.get("content") if isinstance(other, dict) else other
        if other is not None and other != named:
            warnings.append(f"{folder / name}: bos_token is {other!r}, and transformers takes {named!r}")
    leading = leading_token(backend)
    says = _object(folder / TOKENIZER_CONFIG_FILE).get("add_bos_token")
    if isinstance(says, bool) and says != (leading is not None):
        rule = f"transformers goes by the post-processor of {TOKENIZER_FILE}, which says {not says}"
        warnings.append(f"{folder / TOKENIZER_CONFIG_FILE}: add_bos_token is {says}, and {rule}")
    n_tokens = _object(folder / CONFIG_FILE).get("vocab_size")
    if not isinstance(n_tokens, int):
        return named, warnings
    if leading is not None and leading >= n_tokens:
        put = f"the tokenizer puts token {leading} in front of texts"
        raise ModelBroken(f"{folder}: {put}, and {CONFIG_FILE} says vocab_size {n_tokens}")
    token_id = None if named is None else backend.token_to_id(named)
    return (named if token_id is not None and token_id < n_tokens else None), warnings


def _object(path: Path) -> dict[str, object]:
    """The object in a file; an empty one where there is no file."""
    return read_json_object(path, ModelBroken, MAX_TOKENIZER_BYTES) if path.is_file() else {}

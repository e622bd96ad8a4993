"""Text to tokens and back, and what each token says by itself. Needs neither torch nor transformers.

A token's own text is less obvious than it looks: byte-level vocabularies (GPT-2, Llama 3, Qwen) spell bytes
with printable stand-ins, so that a token may be a piece of a character; SentencePiece vocabularies (Llama 2,
Mistral) write a space as "▁" and single bytes as "<0x0A>".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from tdb_server.errors import ModelBroken
from tdb_server.model.continuations import continuing
from tdb_server.model.json_file import read_json_object
from tdb_server.model.model_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE
from tdb_server.model.regular_file import MAX_TOKENIZER_BYTES, is_there, refuse_unreadable

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
"""The library cuts one text on one thread: whoever has several texts has threads of their own."""
_PREFIX_CHARACTERS_PER_TOKEN = 4
_NO_STAND_IN = 0xFFFF
"""Not a byte: what code points become that stand for none."""
_MAX_GAPS = 2**16
"""Ids without a token up to which a table has a place for each id."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_stand_ins() -> dict[int, int]:
    """What `str.translate` needs to turn a token of a byte-level vocabulary (Radford et al. 2019) into bytes.

    Printable Latin-1 characters stand for themselves, the others in their order for what follows U+0100.
    """
    printable = {byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: byte for byte in printable} | {256 + i: byte for i, byte in enumerate(others)}
    return dict.fromkeys(others, _NO_STAND_IN) | stand_ins


class Tokenizer:
    """The tokenizer of one model.

    Args:
        folder: holds `tokenizer.json`, which says how text is cut, and, where there is a token for the
            beginning of text, `tokenizer_config.json`, which names it. Models say some of this elsewhere;
            `tdb_server.model.sources` makes such a folder of what they say.

    Attributes:
        bos_token_id: the token for the beginning of text, which the model's own tokenizer puts in front of a
            text or can be asked to; None where there is none.
        adds_bos: whether it puts that token in front unasked.
        longest_token_bytes: UTF-8 bytes of what the longest token says.

    Raises:
        ModelBroken: a file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / TOKENIZER_FILE
        if not is_there(path):
            raise ModelBroken(f"{folder}: no {TOKENIZER_FILE}")
        refuse_unreadable(path, MAX_TOKENIZER_BYTES)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ModelBroken(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()  # a file may ask to cut prompts or fill them up
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None):
            self._tokenizer.model.dropout = None  # for training: cuts a text in another way each time
        self._bytes = _byte_stand_ins() if is_byte_level(self._tokenizer) else None
        self._added = self._tokenizer.get_added_tokens_decoder()
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        # An id may be anything below 2^32. Those far behind the others are spelled when they are met.
        n_spelled = min(max(ids, default=-1) + 1, len(ids) + _MAX_GAPS)
        leading = leading_token(self._tokenizer)
        named = folder / TOKENIZER_CONFIG_FILE
        configuration = read_json_object(named, ModelBroken) if named.is_file() else {}
        self.adds_bos = leading is not None
        self.bos_token_id = self._named(configuration.get("bos_token")) if leading is None else leading
        self._tokenizer.encode_special_tokens = configuration.get("split_special_tokens") is True
        self._continuing = continuing(self._tokenizer)
        self._strings = np.array([self._spell(token_id) for token_id in range(n_spelled)], object)
        texts = (*self._strings, *(token.content for token in self._added.values()))
        self.longest_token_bytes = max((len(one.encode()) for one in texts), default=0)

    @property
    def vocabulary_size(self) -> int:
        """Tokens known, added ones included. The model's own vocabulary may be padded to more."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. No token is added to it; special tokens written out in it are recognized."""
        return _token_ids(self._tokenizer, text)

    def encode_at_most(self, text: str, n_tokens: int) -> list[int] | None:
        """As `encode`; None for a text that has more than `n_tokens` by far, which is not cut to its end.

        How a text is cut depends a little on what follows, so that a beginning tells only by far.
        """
        n_characters = _PREFIX_CHARACTERS_PER_TOKEN * (n_tokens + 64)
        while n_characters < len(text):
            if len(self.encode(text[:n_characters])) > 2 * n_tokens + 64:
                return None
            n_characters *= 4
        return self.encode(text)

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text where other text stands before it; else as `encode`."""
        return _token_ids(self._continuing, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        """What each token says by itself; U+FFFD where its bytes are not text.

        An id that the tokenizer does not know, as in a model's padded vocabulary, is shown as its number.
        """
        strings = self._strings
        n_spelled = len(strings)
        return [strings[one] if 0 <= one < n_spelled else self._spell(one) for one in ids]

    def token_string_rows(self, ids: npt.NDArray[np.integer]) -> list[list[str]]:
        """As `token_strings`, of many rows of tokens [n, n_tokens]."""
        if ids.size and 0 <= ids.min() <= ids.max() < len(self._strings):
            rows: list[list[str]] = self._strings[ids].tolist()
            return rows
        return [self.token_strings(row) for row in ids.tolist()]

    def spelled(self, piece: str) -> int | None:
        """The id of the token that the vocabulary spells so, such as "Ġto", "▁to" or "<0x0A>"."""
        token_id: int | None = self._tokenizer.token_to_id(piece)
        return token_id

    def _named(self, token: Any) -> int | None:
        """The id of a token that a configuration names, alone or with its flags."""
        content = token.get("content") if isinstance(token, dict) else token
        return self.spelled(content) if isinstance(content, str) else None

    def _spell(self, token_id: int) -> str:
        if added := self._added.get(token_id):
            # A special token is no text; what else was added may be a piece, in which "▁" stands for a space.
            is_piece = not added.special and self._bytes is None
            return str(added.content.replace("▁", " ") if is_piece else added.content)
        piece = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if piece is None:
            return f"<unused {token_id}>"
        if self._bytes is not None:
            try:
                return str(piece.translate(self._bytes).encode("latin-1").decode("utf-8", errors="replace"))
            except UnicodeEncodeError:  # not spelled with stand-ins
                return str(piece)
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(match[1], 16)]).decode("utf-8", errors="replace")
        return str(piece).replace("▁", " ")


def _token_ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Of a text. The library lets other threads run meanwhile only where it is given a list of texts."""
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether the decoder, which undoes the spelling, is a byte-level one or has one among its steps."""
    decoder = tokenizer.decoder
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def leading_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id of the token that the post-processor puts in front of a text; None where it puts none."""
    return _leading_token(json.loads(tokenizer.to_str())["post_processor"])


def _leading_token(processor: dict[str, Any] | None) -> int | None:
    """The token that a post-processor of the `tokenizers` library puts in front of a single text."""
    match processor:
        case {"type": "Sequence", "processors": inner}:
            leading = [_leading_token(one) for one in reversed(inner)]  # the last one ends up outermost
            return next((token_id for token_id in leading if token_id is not None), None)
        case {"single": [{"SpecialToken": {"id": name}}, *_], "special_tokens": tokens}:  # TemplateProcessing
            return int(tokens[name]["ids"][0])
        case {"cls": [_, token_id]}:  # BertProcessing and RobertaProcessing
            return int(token_id)
    return None

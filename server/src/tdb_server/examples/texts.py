"""Texts of a file, cut into pieces that are run by themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tdb_server.errors import ConfigurationBroken

MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a file.

    Attributes:
        number: how many texts come before it.
        end: bytes of the file up to the end of its line.
    """

    number: int
    content: str
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are run by themselves.

    Attributes:
        text: number of the text.
        start: which token of the text is the first, the token for the beginning of text not counted.
        token_ids: two or more.
    """

    text: int
    start: int
    token_ids: tuple[int, ...]


def read_texts(path: Path, offset: int = 0, number: int = 0) -> Iterator[Text]:
    """The texts of a file: `{"text": "..."}` a line; in files that do not end in .jsonl, a text a line.

    Empty lines are left out.

    Args:
        offset: bytes of the file to begin at, the end of a text.
        number: of the first text there.

    Raises:
        ConfigurationBroken: a line is too long or holds no text.
        OSError: the file cannot be read.
    """
    is_json = path.suffix in (".jsonl", ".ndjson", ".json")
    with path.open("rb") as file:
        file.seek(offset)
        while line := file.readline(MAX_LINE_BYTES + 1):
            place = f"--texts: {path}: the line at byte {offset}"
            if len(line) > MAX_LINE_BYTES:
                raise ConfigurationBroken(f"{place} has more than {MAX_LINE_BYTES} bytes")
            offset += len(line)
            content = _text_of(line, is_json, place)
            if content:
                yield Text(number, content, offset)
                number += 1


def _text_of(line: bytes, is_json: bool, place: str) -> str:
    try:
        told = line.decode().strip() if is_json else line.decode().rstrip("\r\n")
        if not is_json or not told:
            return told
        content = json.loads(told)["text"]
        if not isinstance(content, str):
            raise TypeError
        content.encode()  # JSON can spell halves of characters
    except (ValueError, TypeError, KeyError) as error:
        needed = 'an object {"text": "..."}' if is_json else "a text in UTF-8"
        raise ConfigurationBroken(f"{place} is not {needed}") from error
    return content


def pieces_of(text: int, token_ids: list[int], leading: int | None, context: int) -> Iterator[Piece]:
    """Cuts a text.

    The first token of a piece does not count, so each begins with the last token of the one before, unless a
    token for the beginning of text stands in front. A single token is left out.

    Args:
        text: its number.
        token_ids: of the text.
        leading: the token that stands in front of every piece; None where there is none.
        context: tokens of a piece, at the most.
    """
    first = () if leading is None else (leading,)
    n_shared = 1 - len(first)
    for start in range(0, max(len(token_ids) - n_shared, 0), context - 1):
        yield Piece(text, start, (*first, *token_ids[start : start + context - len(first)]))


def fingerprint(path: Path) -> str:
    """What tells a file from others: its size, and a digest of its first MiB.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        beginning = hashlib.sha256(file.read(2**20)).hexdigest()
    return f"{path.stat().st_size}-{beginning[:16]}"

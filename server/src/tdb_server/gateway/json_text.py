"""JSON as text: read within bounds, and written in pieces, so that others get their turn meanwhile.

Python's own reader of JSON, and pydantic's writer of a value, are fast, but let nothing else run meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic_core import to_json

from tdb_server.errors import OverLimit
from tdb_server.gateway.json_faults import malformed

Body = dict[str, Any] | list[Any]
"""What is written. An iterator in it is a list whose entries are made as they are written; a function without
arguments is called when it is its turn to be."""

SHORT_BYTES = 8 * 1024
"""Shorter bodies are read faster than they are handed to a thread."""
MAX_PARTS = 2**18
"""Strings, lists, objects and commas of a body: twice what the default limits have a use for."""
PIECE_BYTES = 256 * 1024

_PART = re.compile(r'[^"\[{,]*+(?:"(?:[^"\\]++|\\.)*+"?|[\[{,]|\Z)', re.DOTALL)
"""A part, and what stands before it. It matches wherever it is tried, so that time is linear."""
_PLAIN = frozenset({str, int, float, bool, type(None)})


class _GivingWay(json.JSONDecoder):
    """Reads with Python's code in place of C's: other threads run between two values."""

    def __init__(self) -> None:
        super().__init__()
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def read_json(content: bytes | bytearray) -> Any:
    """The value that a body holds.

    Raises:
        OverLimit: it has too many parts.
        InvalidRequest: it is not JSON.
    """
    try:
        if len(content) <= SHORT_BYTES:
            return json.loads(content)
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        if sum(1 for _ in islice(_PART.finditer(text), MAX_PARTS + 1)) > MAX_PARTS:
            message = f"the body has more than the {MAX_PARTS} strings, lists, objects and commas allowed"
            raise OverLimit(message, "REQUEST_TOO_LARGE")
        return _GivingWay().decode(text)
    except (ValueError, RecursionError) as error:
        raise malformed("", f"is not JSON: {error}") from error


def json_pieces(body: Body) -> Iterator[bytes]:
    """A body as text, in pieces of at least `PIECE_BYTES` but for the last."""
    gathered: list[bytes] = []
    n_bytes = 0
    for part in _parts(body):
        gathered.append(part)
        n_bytes += len(part)
        if n_bytes >= PIECE_BYTES:
            yield b"".join(gathered)
            gathered, n_bytes = [], 0
    yield b"".join(gathered)


def _parts(value: Any) -> Iterator[bytes]:
    match value:
        case dict() if _PLAIN.issuperset(map(type, value.values())):
            yield to_json(value)
        case dict():
            before = b"{"
            for key, one in value.items():
                yield b"%b%b:" % (before, to_json(key))
                yield from _parts(one)
                before = b","
            yield b"}"
        case [dict(), *_]:
            before = b"["
            for one in value:
                yield before
                yield from _parts(one)
                before = b","
            yield b"]"
        case Iterator():
            before = b"["
            for one in value:
                yield before + to_json(one)
                before = b","
            yield b"]" if before == b"," else b"[]"
        case _ if callable(value):
            yield from _parts(value())
        case _:
            yield to_json(value)

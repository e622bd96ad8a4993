"""The input of a sweep: a JSON object in each line of a file.

    {"prompt": "When Mary and John ...", "target": " Mary", "distractor": [" John", 2322], "id": "mary-1"}

Tokens are texts or vocabulary indices, one or a list. Empty lines are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tdb_client.errors import InvalidValueError
from tdb_client.value_check import LARGEST, check_text

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class SweepLine:
    """A line of the input.

    Attributes:
        number: which line of the file, from 1.
        name: its `id`; its number where it has none.
        words: prompt, target and distractor as `Client.debug` takes them.
    """

    number: int
    name: str
    words: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SweepInput:
    """The lines of a file, and the file's SHA-256 in hexadecimal digits."""

    lines: tuple[SweepLine, ...]
    digest: str


def read_input(file: Path) -> SweepInput:
    """Reads and checks a whole file.

    Raises:
        OSError: it cannot be read.
        InvalidValueError: it has no line, or one is malformed: its number and the field are named.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from None
    lines = [_line(number, text) for number, text in enumerate(content.split(b"\n"), start=1) if text.strip()]
    if not lines:
        raise InvalidValueError(str(file), "has no line")
    numbers: dict[str, int] = {}
    for one in lines:
        first = numbers.setdefault(one.name, one.number)
        if first != one.number:
            raise InvalidValueError(f"line {one.number}, id", f"{one.name!r} is that of line {first} as well")
    return SweepInput(tuple(lines), hashlib.sha256(content).hexdigest())


def _line(number: int, text: bytes) -> SweepLine:
    where = f"line {number}"
    try:
        record = json.loads(text.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(where, f"is no JSON object: {error}") from None
    if not isinstance(record, dict):
        raise InvalidValueError(where, "is no JSON object")
    for name in record:
        if name not in _FIELDS:
            raise InvalidValueError(
                f"{where}, {name!r}", f"there is no such field; a line has {', '.join(_FIELDS)}"
            )
    for name in ("prompt", "target"):
        if name not in record:
            raise InvalidValueError(f"{where}, {name}", "is missing")
    words = {name: _FIELDS[name](value, f"{where}, {name}") for name, value in record.items()}
    return SweepLine(number, words.pop("id", str(number)), words)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a field stands there twice")
    return record


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidValueError(path, f"{json.dumps(value)} is no text")
    check_text(value, path)
    return value


def _token(value: object, path: str) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value <= LARGEST:
            raise InvalidValueError(path, f"{value} is no vocabulary index")
        return value
    if not isinstance(value, str):
        raise InvalidValueError(
            path, f"{json.dumps(value)} is neither the text of a token nor its vocabulary index"
        )
    return _text(value, path)


def _list_of(read: Callable[[object, str], Read]) -> Callable[[object, str], tuple[Read, ...]]:
    """Reads one, or a list of at least one."""

    def read_list(value: object, path: str) -> tuple[Read, ...]:
        if not isinstance(value, list):
            return (read(value, path),)
        return tuple(read(one, f"{path}[{i}]") for i, one in enumerate(value))

    return read_list


def _targets(value: object, path: str) -> tuple[str | int, ...]:
    tokens = _list_of(_token)(value, path)
    if not tokens:
        raise InvalidValueError(path, "has no token")
    return tokens


def _id(value: object, path: str) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _text(value, path)


_FIELDS: Mapping[str, Callable[[object, str], Any]] = {
    "prompt": _text,
    "target": _targets,
    "distractor": _list_of(_token),
    "baseline": _list_of(_text),
    "id": _id,
}
"""How each field is read. All but `id` are passed on under their names."""

"""What is done of a sweep, line by line in a file, so that a sweep that was cut off can go on.

The first line says of which sweep: the input, the model, the settings. A last line without its end was being
written when the sweep was cut off; it is dropped, and its prompt asked about again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tdb_client.errors import InvalidValueError

Record = Mapping[str, Any]

FILE_NAME = "done.jsonl"

_KIND = {"file": "tdb sweep", "format": 2}
_BEGINNING = json.dumps(_KIND).encode()[:-1]
"""Of every journal: nothing else is written to, whatever its name."""


class Journal:
    """The lines that are done; made by `open_journal`.

    Attributes:
        n_tokens: of every line that is done, by its number, how many tokens its prompt has.
    """

    def __init__(self, file: IO[bytes], offsets: dict[int, int], n_tokens: dict[int, int]) -> None:
        self._file = file
        self._offsets = offsets
        self.n_tokens = n_tokens

    def add(self, number: int, record: Record) -> None:
        """Writes down what was answered about a line of the input."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(_encoded({"line": number, **record}))
        self._file.flush()
        self._offsets[number], self.n_tokens[number] = offset, record["n_tokens"]

    def records(self) -> Iterator[Record]:
        """What is done, in the order of the input, whatever the order in which it was answered."""
        for number in sorted(self._offsets):
            self._file.seek(self._offsets[number])
            yield json.loads(self._file.readline())


@contextmanager
def open_journal(folder: Path, heading: Record) -> Iterator[Journal]:
    """Opens the journal of a sweep, or begins it.

    Args:
        folder: where it lies; made where it is not there.
        heading: what the sweep depends on. Once a line is done, all of it must be as it was.

    Raises:
        OSError: it cannot be read or written.
        InvalidValueError: it is of another sweep, is being written to, or cannot be read.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
    with file:
        _lock(file, path)
        offsets, n_tokens = _read(file, path, heading)
        yield Journal(file, offsets, n_tokens)


def _read(file: IO[bytes], path: Path, heading: Record) -> tuple[dict[int, int], dict[int, int]]:
    """Where the records of all whole lines stand, and their prompts' lengths; the rest is cut off."""
    file.seek(0)
    first = file.readline()
    if not (first.startswith(_BEGINNING) or _BEGINNING.startswith(first)):
        raise InvalidValueError(str(path), "is no record of a sweep")
    offsets: dict[int, int] = {}
    n_tokens: dict[int, int] = {}
    end = len(first)
    for number, line in enumerate(file, start=2):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            offsets[record["line"]], n_tokens[record["line"]] = end, record["n_tokens"]
        except (ValueError, LookupError, TypeError):
            raise InvalidValueError(str(path), f"line {number} is no record of a sweep") from None
        end += len(line)
    heading = {**_KIND, **heading}
    if offsets:
        _compare(json.loads(first), json.loads(_encoded(heading)), path)
        file.truncate(end)
    else:  # nothing is done: a sweep that found its input at fault, say, is begun anew
        file.truncate(0)
        file.write(_encoded(heading))
        file.flush()
    return offsets, n_tokens


def _compare(begun: Record, now: Record, path: Path) -> None:
    changed = [name for name in {**begun, **now} if begun.get(name) != now.get(name)]
    if not changed:
        return
    words = ", ".join(f"{name} ({_shown(begun.get(name))}, now {_shown(now.get(name))})" for name in changed)
    raise InvalidValueError(
        "--out",
        f"{path.parent} holds a sweep of another {words}; choose another folder, or go on as it was begun",
    )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encoded(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _lock(file: IO[bytes], path: Path) -> None:
    """Keeps other sweeps out, where the system has a way to."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidValueError("--out", f"another sweep is writing to {path.parent}") from None


def write_whole(path: Path, parts: Sequence[bytes] | Iterator[bytes]) -> None:
    """Writes a file that is there whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.writelines(parts)
        unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None

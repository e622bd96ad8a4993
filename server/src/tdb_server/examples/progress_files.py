"""What a run keeps on disk while it goes on, so that one that was cut off goes on where it was.

The folder `unfinished` has the pieces that were run, and all that is kept of nodes as it was at some point.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from tdb_server.errors import ConfigurationBroken
from tdb_server.examples.texts import Piece

FOLDER = "unfinished"
_STATE_FILE, _PIECES_FILE, _LOCK_FILE = "state", "pieces", "lock"
_HEAD = 3
"""Numbers of a piece's record before its tokens: the text, the first token, how many tokens."""


@dataclass(frozen=True, slots=True)
class RunBasis:
    """What the results of a run follow from. A run that goes on must have the same.

    Attributes:
        texts: fingerprint of the file.
        nodes: types of the nodes.
        batch: pieces that are run together. No option says it: it stays as it was at first.
    """

    digest: str
    dtype: str
    texts: str
    k: int
    n_lowest: int
    n_random: int
    context: int
    nodes: tuple[str, ...]
    seed: int
    max_texts: int | None
    batch: int


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is.

    Attributes:
        offset: bytes of the file of texts that were run.
        random_pieces: taken at random so far.
    """

    offset: int = 0
    n_texts: int = 0
    n_pieces: int = 0
    n_tokens: int = 0
    n_pairs: int = 0
    random_pieces: tuple[int, ...] = ()


_FLAGS = {
    "digest": "--model, --autoencoder",
    "n_lowest": "--lowest",
    "n_random": "--random",
    "max_texts": "--max-texts",
    "nodes": "--nodes",
}


class ProgressFiles:
    """The files of one run, to be used in a `with`, as one run alone may write them.

    Args:
        out: the folder that examples are made in.
        context: tokens of a piece, at the most.
    """

    def __init__(self, out: Path, context: int) -> None:
        self._folder, self._width = out / FOLDER, _HEAD + context
        self._path = self._folder / _PIECES_FILE
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Makes the folder.

        Raises:
            ConfigurationBroken: another run is writing there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / _LOCK_FILE).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigurationBroken(f"--out: another run is writing to {self._folder}") from error
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def begin(
        self, basis: RunBasis, restore: Callable[[Iterator[npt.NDArray[Any]]], None]
    ) -> tuple[RunBasis, Position]:
        """Where to go on; at the start where nothing is there.

        Args:
            basis: of this run.
            restore: takes what was kept, if anything was; raises `ValueError` where that does not fit.

        Raises:
            ConfigurationBroken: what is there is of a run with another basis, or damaged.
        """
        state = self._folder / _STATE_FILE
        position = Position()
        if state.exists():
            with state.open("rb") as file:
                try:
                    before = json.loads(file.readline())
                    was = RunBasis(**{**before["told"], "nodes": tuple(before["told"]["nodes"])})
                    position = Position(
                        **{**before["position"], "random_pieces": tuple(before["position"]["random_pieces"])}
                    )
                except (ValueError, TypeError, KeyError) as error:
                    raise ConfigurationBroken(f"--out: {state}: is damaged: {error}") from error
                basis = replace(basis, batch=was.batch)
                _refuse_others(was, basis, self._folder)
                try:
                    restore(_arrays(file))
                except (ValueError, EOFError) as error:
                    raise ConfigurationBroken(f"--out: {state}: is damaged: {error}") from error
        with self._path.open("ab") as pieces:
            n_bytes = position.n_pieces * self._width * 4
            if pieces.tell() < n_bytes:
                raise ConfigurationBroken(f"--out: {self._path}: is shorter than {state} says")
            pieces.truncate(n_bytes)
        return basis, position

    def add(self, pieces: Sequence[Piece]) -> None:
        """Keeps the tokens of more pieces."""
        records = np.zeros((len(pieces), self._width), np.int32)
        for record, piece in zip(records, pieces, strict=True):
            record[:_HEAD] = piece.text, piece.start, len(piece.token_ids)
            record[_HEAD : _HEAD + len(piece.token_ids)] = piece.token_ids
        with self._path.open("ab") as file:
            file.write(records.tobytes())

    def save(self, basis: RunBasis, position: Position, arrays: Iterable[npt.NDArray[Any]]) -> None:
        """Keeps what was found so far. A run that is cut off meanwhile goes on from what was kept before."""
        new = self._folder / f"{_STATE_FILE}.new"
        with self._path.open("rb") as pieces:
            os.fsync(pieces.fileno())
        with new.open("wb") as file:
            file.write(json.dumps({"told": asdict(basis), "position": asdict(position)}).encode() + b"\n")
            for array in arrays:
                np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / _STATE_FILE)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each piece [n]."""
        return self._records()[:, 2].astype(np.int64)

    def rows(self, pieces: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, list[int]]]:
        """Of chosen pieces the text, its token that is the first, and the token ids."""
        for text, start, length, *token_ids in self._records()[pieces].tolist():
            yield text, start, token_ids[:length]

    def _records(self) -> npt.NDArray[np.int32]:
        if not self._path.stat().st_size:
            return np.zeros((0, self._width), np.int32)
        return np.memmap(self._path, np.int32, "r").reshape(-1, self._width)

    def remove(self) -> None:
        """Once the examples are written."""
        shutil.rmtree(self._folder)


def _refuse_others(was: RunBasis, basis: RunBasis, folder: Path) -> None:
    for name, before in asdict(was).items():
        now = getattr(basis, name)
        if now != before:
            flag = _FLAGS.get(name, f"--{name}")
            raise ConfigurationBroken(
                f"{flag}: is {now}, and was {before} when the run in {folder} began; "
                "give the same to go on, or another --out"
            )


def _arrays(file: IO[bytes]) -> Iterator[npt.NDArray[Any]]:
    """The arrays that follow in a file, one after the other, up to its end."""
    n_bytes = os.fstat(file.fileno()).st_size
    while file.tell() < n_bytes:
        yield np.load(file, allow_pickle=False)

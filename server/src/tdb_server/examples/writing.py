"""Writes what was found as a folder of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tdb_server.examples.files import INDEX_FILE, METADATA_KEY, PIECES_FILE, Index, kind_file
from tdb_server.examples.kinds import Kind
from tdb_server.examples.layer_examples import KindExamples, LayerExamples, NodeExamples

_ROW_GROUP_BYTES = 2**19
_MAX_NODES_PER_ROW_GROUP = 256
_PIECES_PER_ROW_GROUP = 256
_EXAMPLES = pa.list_(
    pa.struct(
        [
            ("piece", pa.int64()),
            ("value", pa.float32()),
            ("token", pa.int32()),
            ("attended_to", pa.int32()),
            ("activations", pa.list_(pa.float32())),
        ]
    )
)
_NODES = pa.schema(
    [
        ("layer", pa.int32()),
        ("index", pa.int32()),
        ("counts", pa.list_(pa.int64())),
        ("top", _EXAMPLES),
        ("lowest", _EXAMPLES),
        ("random", _EXAMPLES),
    ]
)
_PIECES = pa.schema(
    [
        ("piece", pa.int64()),
        ("text", pa.int64()),
        ("start", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
    ]
)


class Pieces(Protocol):
    """The pieces that were run."""

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each [n]."""

    def rows(self, pieces: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, list[int]]]:
        """Of chosen pieces the text, its token that is the first, and the token ids."""


class ExampleWriter:
    """Writes a folder. Files appear in it when they are complete, the index last.

    Args:
        folder: is there.
        index: what the folder is of.
        pieces: that were run.
        spell: says what each of some tokens says by itself.
    """

    def __init__(
        self, folder: Path, index: Index, pieces: Pieces, spell: Callable[[list[int]], list[str]]
    ) -> None:
        self._folder, self._index, self._pieces, self._spell = folder, index, pieces, spell
        self._lengths = pieces.lengths()
        self._used = np.zeros(len(self._lengths), np.bool_)

    def write(self, found: Iterator[KindExamples]) -> None:
        """Writes it all.

        Raises:
            OSError: a file cannot be written.
        """
        for one in found:
            self._write_kind(one)
        self._write_pieces()
        new = self._folder / f"{INDEX_FILE}.new"
        new.write_text(self._index.to_json())
        _finish(new, self._folder / INDEX_FILE)

    def _write_kind(self, found: KindExamples) -> None:
        kind = found.kind
        n_rows = rows_per_group(self._index, kind)
        with self._writer(kind_file(kind), _NODES) as writer:
            for layer in found.layers:
                writer.write_table(self._table(kind, layer), row_group_size=n_rows)

    def _table(self, kind: Kind, found: LayerExamples) -> pa.Table:
        n_nodes, n_bins = found.counts.shape
        counts = pa.ListArray.from_arrays(_offsets(np.full(n_nodes, n_bins)), pa.array(found.counts.ravel()))
        lowest = self._examples(kind, found.lowest, n_nodes)
        columns = [
            pa.array(np.full(n_nodes, found.layer, np.int32)),
            pa.array(np.arange(n_nodes, dtype=np.int32)),
            counts,
            self._examples(kind, found.top, n_nodes),
            lowest,
            self._examples(kind, found.at_random, n_nodes),
        ]
        return pa.Table.from_arrays(columns, schema=_NODES)

    def _examples(self, kind: Kind, found: NodeExamples | None, n_nodes: int) -> pa.Array:
        if found is None:
            return pa.array([[]] * n_nodes, _EXAMPLES)
        filled = found.is_filled
        pieces = found.pieces[filled]
        self._used[pieces] = True
        n_cells = _n_cells(kind, self._lengths[pieces])
        is_cell = np.arange(found.activations.shape[2]) < n_cells[:, None]
        activations = found.activations[filled][is_cell]
        token, attended_to = _places(kind, found.cells[filled], self._index.amounts.context)
        entries = pa.StructArray.from_arrays(
            [
                pa.array(pieces),
                pa.array(found.values[filled]),
                token,
                attended_to,
                pa.ListArray.from_arrays(_offsets(n_cells), pa.array(activations)),
            ],
            fields=list(_EXAMPLES.value_type),
        )
        return pa.ListArray.from_arrays(_offsets(filled.sum(axis=1)), entries, type=_EXAMPLES)

    def _write_pieces(self) -> None:
        used = np.flatnonzero(self._used)
        with self._writer(PIECES_FILE, _PIECES) as writer:
            for start in range(0, len(used), _PIECES_PER_ROW_GROUP):
                numbers = used[start : start + _PIECES_PER_ROW_GROUP]
                rows = [
                    {
                        "piece": int(number),
                        "text": text,
                        "start": first,
                        "token_ids": token_ids,
                        "tokens": self._spell(token_ids),
                    }
                    for number, (text, first, token_ids) in zip(
                        numbers, self._pieces.rows(numbers), strict=True
                    )
                ]
                writer.write_table(pa.Table.from_pylist(rows, _PIECES))

    def _writer(self, name: str, schema: pa.Schema) -> _NewFile:
        described = schema.with_metadata({METADATA_KEY: self._index.to_json().encode()})
        return _NewFile(self._folder / name, described)


class _NewFile:
    """A Parquet file that takes its name when it is complete."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._new = path, path.with_name(f"{path.name}.new")
        self._writer = pq.ParquetWriter(
            self._new, schema, compression="zstd", write_page_checksum=True, write_statistics=False
        )

    def __enter__(self) -> Any:
        return self._writer

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.close()
        if kind is None:
            _finish(self._new, self._path)


def _finish(new: Path, path: Path) -> None:
    """Gives a file its name once it is on the disk."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(path)


def rows_per_group(index: Index, kind: Kind) -> int:
    """Nodes of one row group, which is read as a whole: few enough that a node is there at once."""
    amounts = index.amounts
    n_examples = amounts.k + amounts.n_lowest + amounts.n_random
    per_node = 4 * n_examples * kind.n_cells(amounts.context)
    return max(1, min(_MAX_NODES_PER_ROW_GROUP, _ROW_GROUP_BYTES // max(per_node, 1)))


def _offsets(lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Where lists of these lengths begin and end in what they are parts of."""
    return pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def _n_cells(kind: Kind, n_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return n_tokens * (n_tokens + 1) // 2 if kind.is_of_pairs else n_tokens


def _places(kind: Kind, cells: npt.NDArray[np.int64], context: int) -> tuple[pa.Array, pa.Array]:
    """Of cells the token, and of pairs the one that it attends to."""
    if not kind.is_of_pairs:
        return pa.array(cells.astype(np.int32)), pa.nulls(len(cells), pa.int32())
    query, key = np.tril_indices(context)
    return pa.array(query[cells].astype(np.int32)), pa.array(key[cells].astype(np.int32))

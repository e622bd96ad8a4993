"""Reads a folder of examples: one node at a time, without reading the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tdb_server.domain.node import NodeType
from tdb_server.errors import ConfigurationBroken
from tdb_server.examples.files import INDEX_FILE, METADATA_KEY, PIECES_FILE, kind_file, read_index
from tdb_server.examples.kinds import Kind


@dataclass(frozen=True, slots=True)
class Example:
    """One piece of a text, and how active a node is in it.

    Attributes:
        tokens: what each says by itself.
        value: the activation at the peak.
        token: where the peak is.
        attended_to: of heads, which token is read there; None of others.
        activations: of each token; of heads of each pair of a token and one up to it, row by row.
    """

    tokens: tuple[str, ...]
    value: float
    token: int
    attended_to: int | None
    activations: npt.NDArray[np.float32]

    def pairs(self) -> npt.NDArray[np.float32]:
        """Of heads, the activations by token and token attended to [T, T]; 0 where nothing can be read."""
        found = np.zeros((len(self.tokens), len(self.tokens)), np.float32)
        found[np.tril_indices(len(found))] = self.activations
        return found


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What a folder has of one node.

    Attributes:
        top: the strongest examples first.
        lowest: those with the lowest activations, lowest first; of neurons alone.
        at_random: the same pieces for all nodes.
        counts: activations by the cells of `histogram.py`.
    """

    top: tuple[Example, ...]
    lowest: tuple[Example, ...]
    at_random: tuple[Example, ...]
    counts: npt.NDArray[np.int64]


class ExampleFolder:
    """A folder that `tdb-server examples` made, opened for reading from several threads.

    Args:
        path: of the folder.

    Raises:
        ConfigurationBroken: it is not finished, of another version, damaged, or mixed of several.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            told = (path / INDEX_FILE).read_bytes()
        except OSError as error:
            hint = "`tdb-server examples` makes such folders, and writes that file last"
            raise ConfigurationBroken(f"--examples: {path / INDEX_FILE}: {error.strerror}; {hint}") from error
        try:
            self.index = read_index(told)
        except ValueError as error:
            raise ConfigurationBroken(f"--examples: {path / INDEX_FILE}: {error}") from error
        self._kinds = {kind.node_type: kind for kind in self.index.kinds}
        of_latents = [kind for kind in self.index.kinds if kind.node_type.is_latent]
        if len(of_latents) == 1:  # a name without its block then means these
            self._kinds[NodeType.AUTOENCODER_LATENT] = of_latents[0]
        self._nodes = {kind.node_type: self._open(kind_file(kind)) for kind in self.index.kinds}
        for kind in self.index.kinds:
            n_rows, n_nodes = self._nodes[kind.node_type].num_rows, len(kind.layers) * kind.n_nodes
            if n_rows != n_nodes:
                told_rows = f"{n_rows} rows where there are {n_nodes} nodes"
                raise ConfigurationBroken(f"--examples: {path / kind_file(kind)}: {told_rows}")
        pieces = self._open(PIECES_FILE)
        ends = np.cumsum([pieces.row_group(at).num_rows for at in range(pieces.num_row_groups)])
        self._pieces, self._piece_ends = pieces, ends
        with self._file(PIECES_FILE) as file:
            self._piece_numbers = file.read(["piece"])["piece"].to_numpy()

    def check(self, *, model: str, digest: str) -> None:
        """Refuses to be shown beside another model.

        Args:
            model: the name of the one that is served, and
            digest: that of its weights and dictionaries.

        Raises:
            ConfigurationBroken: the digests differ.
        """
        own = self.index
        if own.digest != digest:
            raise ConfigurationBroken(
                f"--examples: {self._path}: digest: the examples are of {own.model} with digest "
                f"{own.digest}, the server has {model} with digest {digest}; serve the same --model with the "
                "same --autoencoder in the same order"
            )

    def has(self, node_type: NodeType, layer: int, index: int) -> bool:
        """Whether there is a record of a node."""
        kind = self._kinds.get(node_type)
        return kind is not None and layer in kind.layers and 0 <= index < kind.n_nodes

    def record(self, node_type: NodeType, layer: int, index: int) -> NodeRecord:
        """What there is of a node that `has` is true of.

        Raises:
            ConfigurationBroken: a file is damaged.
        """
        kind = self._kinds[node_type]
        try:
            row = self._row(kind, layer, index)
            sides = [row[name] for name in ("top", "lowest", "random")]
            tokens = self._tokens({one["piece"] for side in sides for one in side})
        except (OSError, pa.ArrowException) as error:
            message = f"--examples: {self._path / kind_file(kind)}: is damaged: {error}"
            raise ConfigurationBroken(message) from error
        top, lowest, at_random = (tuple(_example(one, tokens) for one in side) for side in sides)
        return NodeRecord(top, lowest, at_random, np.asarray(row["counts"]))

    def _row(self, kind: Kind, layer: int, index: int) -> dict[str, Any]:
        metadata = self._nodes[kind.node_type]
        n_rows = metadata.row_group(0).num_rows
        groups_per_layer = -(-kind.n_nodes // n_rows)
        group = kind.layers.index(layer) * groups_per_layer + index // n_rows
        with self._file(kind_file(kind), metadata) as file:
            table = file.read_row_group(group)
        (row,) = table.slice(index % n_rows, 1).to_pylist()
        if (row["layer"], row["index"]) != (layer, index):
            raise pa.ArrowInvalid(f"row {index} of layer {layer} is of another node")
        return dict(row)

    def _tokens(self, pieces: set[int]) -> dict[int, tuple[str, ...]]:
        """Of pieces, what their tokens say."""
        places = np.searchsorted(self._piece_numbers, sorted(pieces))
        groups = np.unique(np.searchsorted(self._piece_ends, places, side="right"))
        with self._file(PIECES_FILE, self._pieces) as file:
            table = file.read_row_groups(groups.tolist(), ["piece", "tokens"])
        starts = np.concatenate(([0], self._piece_ends))[groups]
        sizes = self._piece_ends[groups] - starts
        before = np.concatenate(([0], np.cumsum(sizes)))[:-1]
        at = np.searchsorted(groups, np.searchsorted(self._piece_ends, places, side="right"))
        chosen = table.take(before[at] + places - starts[at]).to_pylist()
        found = {row["piece"]: tuple(row["tokens"]) for row in chosen}
        if found.keys() != pieces:
            raise pa.ArrowInvalid(f"{PIECES_FILE} lacks pieces")
        return found

    def _open(self, name: str) -> pq.FileMetaData:
        """What a file says of itself, if it belongs to the index."""
        path = self._path / name
        try:
            with self._file(name) as file:
                metadata = file.metadata
            index = read_index((metadata.metadata or {}).get(METADATA_KEY, b"{}"))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ConfigurationBroken(f"--examples: {path}: {error}") from error
        if index != self.index:
            raise ConfigurationBroken(f"--examples: {path}: is of another run than {INDEX_FILE}")
        return metadata

    def _file(self, name: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        return pq.ParquetFile(
            self._path / name, metadata=metadata, pre_buffer=True, page_checksum_verification=True
        )


def _example(told: dict[str, Any], tokens: Mapping[int, tuple[str, ...]]) -> Example:
    activations = np.asarray(told["activations"], np.float32)
    own = tokens[told["piece"]]
    return Example(own, told["value"], told["token"], told["attended_to"], activations)

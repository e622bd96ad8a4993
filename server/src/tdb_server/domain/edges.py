"""Edges between components: who writes to the residual stream, who reads it, and with what score."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # which counts edges, too
    from tdb_server.domain.model_info import ModelInfo

DEFAULT_STEPS = 5
"""Of integrated gradients, where a request does not say how many."""


class EdgeMethod(Enum):
    """Where gradients are taken."""

    EAP = "eap"
    EAP_IG = "eap_ig"


class EdgeWriterType(Enum):
    """What writes to the residual stream."""

    EMBEDDING = "embedding"
    HEAD = "head"
    MLP = "mlp"


class EdgeReaderType(Enum):
    """What reads the residual stream."""

    HEAD_QUERY = "head_query"
    HEAD_KEY = "head_key"
    HEAD_VALUE = "head_value"
    MLP = "mlp"
    LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class EdgesSpec:
    """The scores of edges towards a loss, the prompt compared with its baselines.

    Attributes:
        top_k: how many edges are listed, those of the largest absolute scores.
        n_steps: gradients are the mean over so many runs: run k starts from the embedding at
            baseline + k / n (prompt - baseline), for k from 1 to n. One is EAP; more are EAP-IG.
        whole_matrix: whether the scores of all edges are wanted too.
    """

    top_k: int
    n_steps: int = 1
    whole_matrix: bool = False


@dataclass(frozen=True, slots=True)
class EdgeWriter:
    """Where edges start; the embedding has no layer, and heads alone have a head."""

    type: EdgeWriterType
    layer_index: int | None = None
    head_index: int | None = None


@dataclass(frozen=True, slots=True)
class EdgeReader:
    """Where edges lead; the logits have no layer. Keys and values have the index of a key/value head."""

    type: EdgeReaderType
    layer_index: int | None = None
    head_index: int | None = None


@dataclass(frozen=True, slots=True)
class EdgeShape:
    """How many writers and readers a model has, and in which order.

    Writers stand in the order in which they write: those before a reader are the first so many.

    Attributes:
        n_heads: of queries, in each layer.
        n_key_value_heads: which several of them may share.
        is_parallel: whether MLPs read the stream before their layer.
    """

    n_layers: int
    n_heads: int
    n_key_value_heads: int
    is_parallel: bool

    @classmethod
    def of(cls, info: ModelInfo) -> EdgeShape:
        """That of a model."""
        return cls(info.n_layers, info.n_heads, info.n_key_value_heads, info.is_parallel)

    @property
    def n_writers(self) -> int:
        """The embedding, and of each layer the heads and the MLP."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_head_readers(self) -> int:
        """Of each layer the queries, the keys and the values."""
        return self.n_heads + 2 * self.n_key_value_heads

    @property
    def n_readers(self) -> int:
        """Of each layer those of heads and the MLP, and the logits."""
        return self.n_layers * (self.n_head_readers + 1) + 1

    def before_heads(self, layer_index: int) -> int:
        """Writers before the heads of a layer."""
        return 1 + layer_index * (self.n_heads + 1)

    def before_mlp(self, layer_index: int) -> int:
        """Writers before the MLP of a layer."""
        return self.before_heads(layer_index) + (0 if self.is_parallel else self.n_heads)

    def writers_before(self) -> tuple[int, ...]:
        """Of each reader, how many writers come before it."""
        found: list[int] = []
        for layer in range(self.n_layers):
            found += [self.before_heads(layer)] * self.n_head_readers + [self.before_mlp(layer)]
        return (*found, self.n_writers)

    def writers(self) -> tuple[EdgeWriter, ...]:
        """All writers, in order."""
        found = [EdgeWriter(EdgeWriterType.EMBEDDING)]
        for layer in range(self.n_layers):
            found += [EdgeWriter(EdgeWriterType.HEAD, layer, head) for head in range(self.n_heads)]
            found.append(EdgeWriter(EdgeWriterType.MLP, layer))
        return tuple(found)

    def readers(self) -> tuple[EdgeReader, ...]:
        """All readers, in order."""
        n_queries, n_keys = self.n_heads, self.n_key_value_heads
        found = []
        for layer in range(self.n_layers):
            for kind, n_heads in (
                (EdgeReaderType.HEAD_QUERY, n_queries),
                (EdgeReaderType.HEAD_KEY, n_keys),
                (EdgeReaderType.HEAD_VALUE, n_keys),
            ):
                found += [EdgeReader(kind, layer, head) for head in range(n_heads)]
            found.append(EdgeReader(EdgeReaderType.MLP, layer))
        return (*found, EdgeReader(EdgeReaderType.LOGITS))


@dataclass(frozen=True, slots=True)
class EdgesResult:
    """The edges of one prompt.

    Attributes:
        writers: all of them, in order.
        readers: all of them, in order.
        writers_before: of each reader, how many writers come before it: the first so many.
        edge_writers: of each listed edge, which writer it starts from [k]; the largest absolute scores first.
        edge_readers: which reader it leads to [k].
        edge_scores: in units of the loss [k]; none is 0.
        scores: of all pairs [writers, readers], 0 where the writer does not come first; where asked for.
    """

    writers: tuple[EdgeWriter, ...]
    readers: tuple[EdgeReader, ...]
    writers_before: tuple[int, ...]
    edge_writers: npt.NDArray[np.int64]
    edge_readers: npt.NDArray[np.int64]
    edge_scores: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating] | None

"""Edges between components: what is asked, what is answered, and files of it for other programs.

`to_mib_json` writes what the circuit track of MIB (the Mechanistic Interpretability Benchmark) reads, in the
format of the EAP-IG package; `to_attribution_graph` what circuit-tracer's and Neuronpedia's viewers of
attribution graphs read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tdb_client.errors import ResponseError
from tdb_client.inference import Loss, chosen_loss
from tdb_client.model_info import ModelInfo
from tdb_client.node_table import imported_pandas
from tdb_client.objective_words import objective_words
from tdb_client.results import (
    CallInfo,
    EdgeReader,
    EdgesResult,
    EdgeWriter,
    InferenceResult,
    LossTokens,
    PromptTokens,
)

if TYPE_CHECKING:
    import pandas as pd

    from tdb_client.requests import TokenWords  # which knows these sub-requests

EdgeMethod = Literal["eap", "eap_ig"]
_LETTERS = {"head_query": "q", "head_key": "k", "head_value": "v"}


@dataclass(frozen=True, slots=True)
class EdgesSubRequest:
    """One prompt whose edges are wanted.

    Attributes:
        prompt: the prompt.
        loss: the objective.
        baselines: prompts to compare with, each with as many tokens; at least one.
        method: `eap`, or `eap_ig` with the mean of the gradients in several runs.
        steps: how many runs; for `eap_ig` alone, None for 5.
        k: how many edges to list.
        matrix: whether the scores of all edges are wanted too.
        add_bos: whether the beginning-of-text token stands in front of the prompts; see DebugSubRequest.
    """

    prompt: str
    loss: Loss
    baselines: tuple[str, ...]
    method: EdgeMethod = "eap"
    steps: int | None = None
    k: int = 100
    matrix: bool = False
    add_bos: bool | None = None

    @classmethod
    def of(
        cls,
        prompt: str,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        baseline: str | Sequence[str],
        loss: Loss | None = None,
        method: EdgeMethod = "eap",
        steps: int | None = None,
        k: int = 100,
        matrix: bool = False,
        add_bos: bool | None = None,
    ) -> EdgesSubRequest:
        """Makes a sub-request; one token or prompt may stand for a list.

        Raises:
            InvalidValueError: there are both tokens and another loss in their place.
        """
        baselines = (baseline,) if isinstance(baseline, str) else tuple(baseline)
        return cls(
            prompt, chosen_loss(target, distractor, loss), baselines, method, steps, k, matrix, add_bos
        )


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge; its score is how much the objective would fall, did the reader see what baselines write."""

    writer: EdgeWriter
    reader: EdgeReader
    score: float

    def __str__(self) -> str:
        return f"{self.writer} -> {self.reader}"


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """The edges of one prompt.

    Attributes:
        request: what was asked.
        call: which call, which model.
        prompt: the prompt's tokens.
        loss: the objective's value for the prompt.
        loss_tokens: its targets and distractors.
        result: all writers and readers, the listed edges, and the matrix of scores where it was asked for.
        d_model: channels of the model's residual stream; None where the server did not say.
        cached: whether the result comes from the server's cache.
    """

    request: EdgesSubRequest
    call: CallInfo
    prompt: PromptTokens
    loss: float
    loss_tokens: LossTokens
    result: EdgesResult
    d_model: int | None = None
    cached: bool = False

    def __len__(self) -> int:
        return len(self.result.edge_scores)

    def __iter__(self) -> Iterator[Edge]:
        """The listed edges, largest absolute score first."""
        one = self.result
        columns = (one.edge_writers.tolist(), one.edge_readers.tolist(), one.edge_scores.tolist())
        for writer, reader, score in zip(*columns, strict=True):
            yield Edge(one.writers[writer], one.readers[reader], score)

    @property
    def objective(self) -> str:
        """What is measured, in words: `logit ' Mary' - ' John'`."""
        return objective_words(self.request.loss, self.loss_tokens)

    def to_frame(self) -> pd.DataFrame:
        """The listed edges as a pandas frame, a row each.

        Raises:
            ImportError: pandas is not installed.
        """
        pd = imported_pandas()
        edges = list(self)
        return pd.DataFrame(
            {
                "edge": [str(one) for one in edges],
                "writer": [one.writer.type for one in edges],
                "writer_layer": pd.array([one.writer.layer for one in edges], dtype="Int64"),
                "writer_head": pd.array([one.writer.head for one in edges], dtype="Int64"),
                "reader": [one.reader.type for one in edges],
                "reader_layer": pd.array([one.reader.layer for one in edges], dtype="Int64"),
                "reader_head": pd.array([one.reader.head for one in edges], dtype="Int64"),
                "score": [one.score for one in edges],
            }
        )

    def to_mib_json(self, path: str | Path) -> None:
        """Writes the scores of all edges as MIB's circuit track reads them; the listed ones are the circuit.

        MIB gives every head a key and a value of its own. Where heads share them, each of these heads gets
        the score of the key or the value that it shares: they are kept or left out together.

        Raises:
            ValueError: the matrix was not asked for, or the server did not describe its model.
        """
        if self.result.scores is None:
            raise ValueError("MIB wants the scores of all edges: ask with matrix=True")
        if self.d_model is None:
            raise ValueError("MIB wants the width of the model, which the server did not give")
        Path(path).write_text(json.dumps(_mib(self.result, self.result.scores.tolist(), self.d_model)))

    def to_attribution_graph(self, path: str | Path, slug: str = "edges") -> None:
        """Writes the listed edges as an attribution graph: nodes, links and metadata.

        A node is a component, not a feature at a token: scores are sums over tokens. All stand at the last
        one. What reaches a head through query, key and value is one link, their sum. Keys and values that
        several heads share are nodes of their own, as nothing says how much of them is which head's.

        Args:
            path: of the file.
            slug: the graph's name.
        """
        Path(path).write_text(json.dumps(_attribution_graph(self, slug)))


def edges(request: EdgesSubRequest, answer: InferenceResult, model: ModelInfo | None) -> Edges:
    """The edges in the answer to one sub-request.

    Args:
        model: that answered, where it is known.

    Raises:
        ResponseError: there are none.
    """
    found = answer.results.get("edges")
    if not isinstance(found, EdgesResult) or answer.loss is None or answer.loss_tokens is None:
        raise ResponseError("the answer has no edges")
    d_model = None if model is None else model.d_model
    return Edges(
        request, answer.call, answer.prompt, answer.loss, answer.loss_tokens, found, d_model, answer.cached
    )


def _mib(result: EdgesResult, scores: list[list[float]], d_model: int) -> dict[str, Any]:
    n_layers = max(one.layer for one in result.writers if one.layer is not None) + 1
    n_heads = sum(one.type == "head" and one.layer == 0 for one in result.writers)
    n_keys = sum(one.type == "head_key" and one.layer == 0 for one in result.readers)
    of_first = [
        before
        for one, before in zip(result.readers, result.writers_before, strict=True)
        if (one.type, one.layer) == ("mlp", 0)
    ]
    is_listed = set(zip(result.edge_writers.tolist(), result.edge_readers.tolist(), strict=True))
    edges: dict[str, dict[str, float | bool]] = {}
    kept = {"input", "logits"}
    for j, (reader, n_before) in enumerate(zip(result.readers, result.writers_before, strict=True)):
        for reader_name, letter in _mib_readers(reader, n_heads // n_keys):
            for i, writer in enumerate(result.writers[:n_before]):
                writer_name, is_kept = _mib_writer(writer), (i, j) in is_listed
                edges[f"{writer_name}->{reader_name}{letter}"] = {"score": scores[i][j], "in_graph": is_kept}
                kept |= {writer_name, reader_name} if is_kept else set()
    names = [*map(_mib_writer, result.writers), "logits"]
    return {
        "cfg": {
            "n_layers": n_layers,
            "n_heads": n_heads,
            "parallel_attn_mlp": of_first == [1],
            "d_model": d_model,
        },
        "nodes": {name: {"in_graph": name in kept} for name in names},
        "edges": edges,
    }


def _mib_writer(writer: EdgeWriter) -> str:
    match writer.type:
        case "head":
            return f"a{writer.layer}.h{writer.head}"
        case "mlp":
            return f"m{writer.layer}"
        case _:
            return "input"


def _mib_readers(reader: EdgeReader, n_heads_per_group: int) -> list[tuple[str, str]]:
    """The nodes that a reader is of, and how: several for a key or a value that several heads share."""
    if reader.type == "logits":
        return [("logits", "")]
    if reader.head is None:
        return [(f"m{reader.layer}", "")]
    n_sharing = 1 if reader.type == "head_query" else n_heads_per_group
    heads = range(reader.head * n_sharing, (reader.head + 1) * n_sharing)
    return [(f"a{reader.layer}.h{head}", f"<{_LETTERS[reader.type]}>") for head in heads]


def _attribution_graph(edges: Edges, slug: str) -> dict[str, Any]:
    result, last = edges.result, len(edges.prompt) - 1
    n_layers = max(one.layer for one in result.writers if one.layer is not None) + 1
    n_heads = sum(one.type == "head" and one.layer == 0 for one in result.writers)
    shares = n_heads != sum(one.type == "head_key" and one.layer == 0 for one in result.readers)
    nodes: dict[str, dict[str, Any]] = {}
    weights: dict[tuple[str, str], float] = {}

    def node(layer: str, feature: int, kind: str, words: str, letter: str = "") -> str:
        node_id = f"{layer}_{feature}{letter}_{last}"
        nodes.setdefault(
            node_id,
            {
                "node_id": node_id,
                "feature": feature,
                "layer": layer,
                "ctx_idx": last,
                "feature_type": kind,
                "token_prob": 0.0,
                "is_target_logit": kind == "logit",
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{layer}_{feature}{letter}-0",
                "clerp": words,
                "influence": None,
                "activation": None,
            },
        )
        return node_id

    def reader_node(reader: EdgeReader) -> str:
        if reader.type == "logits":
            return logits
        feature = n_heads if reader.head is None else reader.head
        if shares and reader.type in ("head_key", "head_value"):
            return node(str(reader.layer), feature, reader.type, str(reader), _LETTERS[reader.type])
        kind = "mlp" if reader.head is None else "attention head"
        return node(str(reader.layer), feature, kind, str(reader.component))

    def writer_node(writer: EdgeWriter) -> str:
        if writer.type == "embedding":
            return node("E", 0, "embedding", str(writer))
        kind = "mlp" if writer.head is None else "attention head"
        return node(str(writer.layer), n_heads if writer.head is None else writer.head, kind, str(writer))

    words = edges.loss_tokens
    first = words.target_ids[0] if words.target_ids else 0
    logits = node(str(n_layers + 1), first, "logit", edges.objective)
    for edge in edges:
        ends = writer_node(edge.writer), reader_node(edge.reader)
        weights[ends] = weights.get(ends, 0.0) + edge.score
    return {
        "metadata": {
            "slug": slug,
            "scan": edges.call.model_name,
            "transcoder_list": [],
            "prompt_tokens": list(edges.prompt.tokens),
            "prompt": edges.request.prompt,
            "node_threshold": None,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": [
            {"source": source, "target": target, "weight": weight}
            for (source, target), weight in weights.items()
        ],
    }

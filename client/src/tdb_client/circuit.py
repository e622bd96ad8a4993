"""A circuit: the few heads and MLPs that do most of what a model does, and how they were found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitNode
from tdb_client.errors import InvalidValueError
from tdb_client.inference import Token
from tdb_client.nodes import NodeType
from tdb_client.requests import DebugSubRequest
from tdb_client.results import CircuitValues

MAX_CALLS = 64
"""Calls that measure circuits, by default."""

FORMAT = "transformer-debugger circuit 1"


@dataclass(frozen=True, slots=True)
class CircuitStep:
    """A circuit of some size, and what it keeps."""

    nodes: tuple[CircuitNode, ...]
    values: CircuitValues

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def faithfulness(self) -> float:
        """How much of the objective it keeps; 0 where the prompt and its baseline have the same."""
        return self.values.faithfulness or 0.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """The smallest circuit found that keeps enough of the objective, and the best found of every size.

    Example:
        circuit = client.circuit(prompt, " Mary", " John", baseline=other)
        len(circuit), circuit.faithfulness, circuit.share
        [str(one) for one in circuit.nodes]
        client.debug_many([circuit.sub_request()])  # the run in which nothing else is left

    Attributes:
        prompt: the prompt.
        target: tokens that count for the objective.
        distractor: tokens that count against it.
        baseline: prompts whose values all other nodes have; without any they are 0.
        add_bos: as in DebugSubRequest.
        model_name: the model.
        model_digest: SHA-256 of its weights.
        wanted: the faithfulness that was asked for.
        n_components: whole heads and MLPs that the model has.
        path: the most faithful circuit measured of each size, ascending.
        ranking: components by their estimated effect, the largest first, with that estimate.
        n_measured: circuits that were measured.
        node_types: the types of node that it is made of.
    """

    prompt: str
    target: tuple[Token, ...]
    distractor: tuple[Token, ...]
    baseline: tuple[str, ...]
    add_bos: bool | None
    model_name: str
    model_digest: str
    wanted: float
    n_components: int
    path: tuple[CircuitStep, ...]
    ranking: tuple[tuple[CircuitNode, float], ...] = field(repr=False, default=())
    n_measured: int = 0
    node_types: tuple[NodeType, ...] = WHOLE_NODE_TYPES

    def __len__(self) -> int:
        return len(self.best)

    @property
    def best(self) -> CircuitStep:
        """The smallest that is as faithful as wanted; where none is, the nearest to all of the objective."""
        enough = [one for one in self.path if one.faithfulness >= self.wanted]
        return enough[0] if enough else min(self.path, key=lambda one: abs(1 - one.faithfulness))

    @property
    def is_faithful(self) -> bool:
        """Whether one was found that is as faithful as wanted."""
        return self.best.faithfulness >= self.wanted

    @property
    def nodes(self) -> tuple[CircuitNode, ...]:
        """The best circuit's, in the order of the model: by layer, heads before the MLP."""
        return tuple(sorted(self.best.nodes, key=lambda one: (one.layer, one.type, one.index)))

    @property
    def faithfulness(self) -> float:
        """The best circuit's."""
        return self.best.faithfulness

    @property
    def share(self) -> float:
        """Of all heads and MLPs of the model, those in the best circuit: 0 to 1."""
        return len(self) / self.n_components

    def sub_request(self) -> DebugSubRequest:
        """The run in which the best circuit alone is left."""
        return DebugSubRequest(
            self.prompt,
            self.target,
            self.distractor,
            add_bos=self.add_bos,
            baseline=self.baseline,
            only_these=self.nodes,
            node_types=self.node_types,
        )

    def to_html(self) -> str:
        """The circuit as one self-contained HTML page: the nodes, and faithfulness against size."""
        from tdb_client.report.circuit_page import circuit_page

        return circuit_page(self)

    def to_json(self) -> str:
        """Everything as JSON, which `Circuit.from_json` reads."""
        body = asdict(self) | {
            "format": FORMAT,
            "path": [{"nodes": list(map(str, one.nodes)), "values": asdict(one.values)} for one in self.path],
            "ranking": [[str(node), estimate] for node, estimate in self.ranking],
        }
        return json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1)

    def save(self, file: str | Path) -> None:
        """Writes `to_json` into a file."""
        Path(file).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> Circuit:
        """Reads what `save`, or `tdb circuit --json`, has written.

        Raises:
            OSError: the file cannot be read.
            InvalidValueError: it holds something else.
        """
        return cls.from_json(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json(cls, text: str) -> Circuit:
        """Reads what `to_json` has made.

        Raises:
            InvalidValueError: it is something else.
        """
        try:
            body: dict[str, Any] = json.loads(text)
            if body.pop("format") != FORMAT:
                raise ValueError("another format")
            lists = {name: tuple(body[name]) for name in ("target", "distractor", "baseline", "node_types")}
            path = tuple(_step(one) for one in body["path"])
            ranking = tuple((CircuitNode.parse(node), float(estimate)) for node, estimate in body["ranking"])
            if not path:
                raise ValueError("no circuit at all")
            return cls(**body | lists | {"path": path, "ranking": ranking})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidValueError("circuit", f"is not what Circuit.save writes: {error}") from None


def _step(body: Mapping[str, Any]) -> CircuitStep:
    return CircuitStep(tuple(map(CircuitNode.parse, body["nodes"])), CircuitValues(**body["values"]))


def best_of_each_size(measured: Sequence[CircuitStep]) -> tuple[CircuitStep, ...]:
    """Of circuits measured, those nearest to the whole objective among as many nodes; by size."""
    best: dict[int, CircuitStep] = {}
    for one in measured:
        known = best.get(len(one))
        if known is None or abs(1 - one.faithfulness) < abs(1 - known.faithfulness):
            best[len(one)] = one
    return tuple(best[size] for size in sorted(best))

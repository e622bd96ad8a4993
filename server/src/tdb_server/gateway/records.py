"""What the viewer asks about neuron records: texts of data sets, and what a language model wrote about them.

Texts come from the folder that `tdb-server examples` made, where there is one. What there is no record of is
answered in the terms of the questions, so that pages show what else they have. There are no explanations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import LATENT_NODE_TYPES, NodeType
from tdb_server.domain.reason import Reason
from tdb_server.errors import FailedPrecondition, FieldViolation
from tdb_server.examples.kinds import Kind
from tdb_server.gateway import json_bodies as bodies
from tdb_server.gateway.json_faults import read_body
from tdb_server.gateway.json_text import Body

if TYPE_CHECKING:
    from tdb_server.examples.reading import Example, ExampleFolder, NodeRecord

RECORD_BYTES = 8 * 2**20
"""Memory that one record counts for: what is read of files, and the answer that is made of it."""
_ATTENTION_WRITES = "attn_write_norm"
_LATENTS = {one.value: one for one in LATENT_NODE_TYPES}
_OF_TOKENS = {
    DerivedScalar.MLP_POST_ACT.value: NodeType.MLP_NEURON,
    **_LATENTS,
    **{f"online_{name}": node_type for name, node_type in _LATENTS.items()},
}
"""By the viewer's name of a record's derived scalar, the type of nodes with an activation for each token."""
_OF_PAIRS = dict.fromkeys(
    (_ATTENTION_WRITES, DerivedScalar.UNFLATTENED_ATTN_WRITE_NORM.value), NodeType.ATTENTION_HEAD
)
_LISTED = {
    NodeType.MLP_NEURON: (DerivedScalar.MLP_POST_ACT.value, "MLP neurons"),
    NodeType.ATTENTION_HEAD: (_ATTENTION_WRITES, "attention write by token pair"),
    NodeType.MLP_AUTOENCODER_LATENT: (NodeType.MLP_AUTOENCODER_LATENT.value, "MLP autoencoder"),
    NodeType.ATTENTION_AUTOENCODER_LATENT: (
        NodeType.ATTENTION_AUTOENCODER_LATENT.value,
        "attention autoencoder",
    ),
}
"""What the viewer calls records, and people do. Of others it has no pages: its list would fail at them."""
_Scalars = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RecordEndpoint:
    """How one of the viewer's questions is answered.

    Attributes:
        read: what a parsed body asks; raises `InvalidRequest`.
        answer: the answer to that; raises `FailedPrecondition` where there is none. Reads files, perhaps.
    """

    read: Callable[[Any], Any]
    answer: Callable[[Any], Body]


def record_endpoints(examples: ExampleFolder | None) -> dict[str, RecordEndpoint]:
    """The endpoints about records, by name.

    Args:
        examples: where texts are found; None where nowhere.
    """

    def of(model: type[bodies.Body], answer: Callable[[Any], Body]) -> RecordEndpoint:
        return RecordEndpoint(lambda body: read_body(model, body), answer)

    def neuron_record(asked: bodies.NodeIdAndDatasets) -> Body:
        return _neuron_record(asked, _found(examples, asked, _OF_TOKENS))

    def attention_head_record(asked: bodies.NodeIdAndDatasets) -> Body:
        return _attention_head_record(asked, _found(examples, asked, _OF_PAIRS))

    return {
        "neuron_datasets_metadata": RecordEndpoint(lambda _: None, lambda _: _datasets(examples)),
        "neuron_record": of(bodies.NodeIdAndDatasets, neuron_record),
        "attention_head_record": of(bodies.NodeIdAndDatasets, attention_head_record),
        "existing_explanations": of(bodies.ExistingExplanationsRequest, lambda _: []),
        "explain": of(bodies.NodeIdAndDatasets, _nothing_to("explain from")),
        "score": of(bodies.ScoreRequest, _nothing_to("score against")),
    }


def _nothing_to(what: str) -> Callable[[Any], Body]:
    """Raises `FailedPrecondition`: an empty list would leave the viewer waiting."""

    def refuse(_: Any) -> Body:
        description = f"this server has no neuron records to {what}"
        raise FailedPrecondition([FieldViolation("datasets", description, Reason.FIELD_NOT_ALLOWED)])

    return refuse


def _found(
    examples: ExampleFolder | None, asked: bodies.NodeIdAndDatasets, types: Mapping[str, NodeType]
) -> NodeRecord | None:
    node_type = types.get(asked.dst or "")
    layer, index = asked.layer_index, asked.activation_index
    if examples is None or node_type is None or layer is None or index is None:
        return None
    return examples.record(node_type, layer, index) if examples.has(node_type, layer, index) else None


def _dataset(asked: bodies.NodeIdAndDatasets) -> str:
    """The first that was asked for; the reference names the one that it found the component in."""
    return next(iter(asked.datasets or ()), "")


def _datasets(examples: ExampleFolder | None) -> Body:
    if examples is None:
        return []
    index = examples.index
    listed = [(kind, *_LISTED[kind.node_type]) for kind in index.kinds if kind.node_type in _LISTED]
    return [
        {
            "shortName": _short_name(index.model, kind),
            "derivedScalarType": scalar,
            "userVisibleName": f"{index.model} - {words}",
            "neuronDatasetPath": index.texts,
        }
        for kind, scalar, words in listed
    ]


def _short_name(model: str, kind: Kind) -> str:
    """What the viewer's addresses begin with: the model, and its autoencoder as `/model_info` names it."""
    return model if kind.site is None else f"{model}_{kind.site.value.replace('_', '-')}"


def _neuron_record(asked: bodies.NodeIdAndDatasets, record: NodeRecord | None) -> Body:
    sides: Sequence[Sequence[Example]] = ((), ()) if record is None else (record.top, record.at_random)
    # The first token of a piece counts nowhere; its activation is shown, and may be beyond all others.
    most = max((float(one.activations[1:].max()) for side in sides for one in side), default=0.0)
    top, at_random = (
        [
            [
                {"token": token, "scalar": scalar, "normalizedScalar": normalized}
                for token, scalar, normalized in zip(
                    one.tokens, one.activations.tolist(), _normalized(one.activations, most), strict=True
                )
            ]
            for one in side
        ]
        for side in sides
    )
    return {
        "dataset": _dataset(asked),
        "maxActivation": _largest(record),
        "topActivations": top,
        "randomSample": at_random,
    }


def _attention_head_record(asked: bodies.NodeIdAndDatasets, record: NodeRecord | None) -> Body:
    sides: Sequence[Sequence[Example]] = ((), ()) if record is None else (record.top, record.at_random)
    read = [[(one.tokens, _summaries(one)) for one in side] for side in sides]
    most = {
        name: max((_most_that_counts(columns[name]) for side in read for _, columns in side), default=0.0)
        for name in ("scalars", *_SUMMARIES)
    }
    top, at_random = ([_pair_rows(tokens, columns, most) for tokens, columns in side] for side in read)
    return {
        "dataset": _dataset(asked),
        "maxAttentionActivation": _largest(record),
        "mostPositiveTokenSequences": top,
        "randomTokenSequences": at_random,
    }


_SUMMARIES: dict[str, Callable[[_Scalars], _Scalars]] = {
    "totalScalarIn": lambda pairs: pairs.sum(axis=1),
    "maxScalarIn": lambda pairs: pairs.max(axis=1),
    "totalScalarOut": lambda pairs: pairs.sum(axis=0),
    "maxScalarOut": lambda pairs: pairs.max(axis=0),
}
"""What a token has beside its pairs, made of all pairs [T, T]: what it reads, and what others read of it."""


def _summaries(example: Example) -> dict[str, _Scalars]:
    pairs = example.pairs()
    return {"scalars": pairs, **{name: of_pairs(pairs) for name, of_pairs in _SUMMARIES.items()}}


def _most_that_counts(numbers: _Scalars) -> float:
    """The largest in which the first token has no part."""
    return float(numbers[(slice(1, None),) * numbers.ndim].max())


def _pair_rows(tokens: Sequence[str], columns: Mapping[str, _Scalars], most: Mapping[str, float]) -> Body:
    rows: list[dict[str, Any]] = [
        {
            "token": token,
            "scalars": columns["scalars"][at, : at + 1].tolist(),
            "normalizedScalars": _normalized(columns["scalars"][at, : at + 1], most["scalars"]),
        }
        for at, token in enumerate(tokens)
    ]
    for name in _SUMMARIES:
        own = zip(rows, columns[name].tolist(), _normalized(columns[name], most[name]), strict=True)
        for row, number, normalized in own:
            row[name] = number
            row[f"normalized{name[0].upper()}{name[1:]}"] = normalized
    return rows


def _normalized(numbers: _Scalars, most: float) -> list[float]:
    """Numbers over the largest, from 0 to 1; what is negative becomes 0."""
    return np.clip(numbers / most, 0, 1).tolist() if most > 0 else [0.0] * len(numbers)


def _largest(record: NodeRecord | None) -> float:
    return record.top[0].value if record is not None and record.top else 0.0

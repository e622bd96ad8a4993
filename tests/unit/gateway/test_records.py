"""What the viewer and the workbench are answered about a node's examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tdb_server.domain.model_info import Site
from tdb_server.domain.node import NodeType
from tdb_server.errors import FailedPrecondition
from tdb_server.examples import histogram
from tdb_server.examples.files import Index
from tdb_server.examples.kinds import Amounts, Kind
from tdb_server.examples.reading import Example, NodeRecord
from tdb_server.gateway.json_text import json_pieces
from tdb_server.gateway.node_examples import node_examples
from tdb_server.gateway.records import record_endpoints

from tests.unit.gateway.test_openapi import of_answer

KINDS = (
    Kind(NodeType.MLP_NEURON, (0, 1), 3),
    Kind(NodeType.ATTENTION_HEAD, (0, 1), 2),
    Kind(NodeType.MLP_AUTOENCODER_LATENT, (1,), 9, Site.RESID_DELTA_MLP),
    Kind(NodeType.MLP_TRANSCODER_LATENT, (1,), 9, Site.MLP_TRANSCODER),
)
COUNTS = np.zeros(histogram.N_BINS, np.int64)
COUNTS[[histogram.ZERO - 5, histogram.ZERO, histogram.ZERO + 1, histogram.ZERO + 3]] = 2, 4, 3, 7


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


NEURON = NodeRecord(
    (
        Example(("<b>", " a", "é"), 4.0, 2, None, numbers(9, -1, 4)),
        Example(("x", "y"), 2, 1, None, numbers(0, 2)),
    ),
    (Example(("x", "z"), -3.0, 1, None, numbers(1, -3)),),
    (Example(("x", "y"), 1.0, 1, None, numbers(0, 1)),),
    COUNTS,
)
HEAD = NodeRecord(
    (Example(("x", "y", "z"), 2.0, 2, 1, numbers(8, 4, 1, 3, 2, 0.5)),),
    (),
    (Example(("p", "q"), 1.0, 1, 1, numbers(1, 1, 1)),),
    COUNTS,
)


@dataclass
class Folder:
    """Stands in for the folder of files."""

    index: Index
    records: dict[tuple[NodeType, int, int], NodeRecord]

    def has(self, *node: Any) -> bool:
        return node in self.records

    def record(self, *node: Any) -> NodeRecord:
        return self.records[node]


FOLDER: Any = Folder(
    Index("tiny", "digest", "float32", Amounts(2, 1, 1, 3), KINDS, "t.jsonl 1-2", 0, 70, 80, 90, 100),
    {
        (NodeType.MLP_NEURON, 1, 2): NEURON,
        (NodeType.MLP_TRANSCODER_LATENT, 1, 2): NEURON,
        (NodeType.ATTENTION_HEAD, 1, 0): HEAD,
    },
)


def answer(endpoint: str, body: Any = None, folder: Any = FOLDER) -> Any:
    record = record_endpoints(folder)[endpoint]
    text = b"".join(json_pieces(record.answer(record.read(body))))
    of_answer(endpoint).validate(json.loads(text))
    return json.loads(text)


def node(dst: str, layer: int, index: int) -> dict[str, Any]:
    return {"dst": dst, "layerIndex": layer, "activationIndex": index, "datasets": ["tiny"]}


@pytest.mark.parametrize("dst", ["mlp_post_act", "mlp_transcoder_latent", "online_mlp_transcoder_latent"])
def test_a_neuron_s_record(dst: str) -> None:
    """Colours go up to the strongest activation that counts, which the first token's does not."""
    assert answer("neuron_record", node(dst, 1, 2)) == {
        "dataset": "tiny",
        "maxActivation": 4.0,
        "topActivations": [
            [
                {"token": "<b>", "scalar": 9.0, "normalizedScalar": 1.0},
                {"token": " a", "scalar": -1.0, "normalizedScalar": 0.0},
                {"token": "é", "scalar": 4.0, "normalizedScalar": 1.0},
            ],
            [
                {"token": "x", "scalar": 0.0, "normalizedScalar": 0.0},
                {"token": "y", "scalar": 2.0, "normalizedScalar": 0.5},
            ],
        ],
        "randomSample": [
            [
                {"token": "x", "scalar": 0.0, "normalizedScalar": 0.0},
                {"token": "y", "scalar": 1.0, "normalizedScalar": 0.25},
            ]
        ],
    }


@pytest.mark.parametrize("dst", ["attn_write_norm", "unflattened_attn_write_norm"])
def test_a_head_s_record(dst: str) -> None:
    """Of every token what it reads from those up to itself, and what those from itself on read of it."""
    found = answer("attention_head_record", node(dst, 1, 0))
    assert (found["dataset"], found["maxAttentionActivation"]) == ("tiny", 2.0)
    (rows,) = found["mostPositiveTokenSequences"]
    assert [one["token"] for one in rows] == ["x", "y", "z"]
    assert [one["scalars"] for one in rows] == [[8.0], [4.0, 1.0], [3.0, 2.0, 0.5]]
    assert [one["normalizedScalars"] for one in rows] == [[1.0], [1.0, 0.5], [1.0, 1.0, 0.25]]
    expected = {
        "totalScalarIn": ([8.0, 5.0, 5.5], 5.5),
        "maxScalarIn": ([8.0, 4.0, 3.0], 4.0),
        "totalScalarOut": ([15.0, 3.0, 0.5], 3.0),
        "maxScalarOut": ([8.0, 2.0, 0.5], 2.0),
    }
    for name, (values, most) in expected.items():
        assert [one[name] for one in rows] == values
        normalized = f"normalized{name[0].upper()}{name[1:]}"
        assert [one[normalized] for one in rows] == pytest.approx([min(one / most, 1) for one in values])
    assert [len(one) for one in found["randomTokenSequences"]] == [2]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("neuron_record", node("mlp_post_act", 1, 1)),
        ("neuron_record", node("attn_write_norm", 1, 0)),
        ("neuron_record", node("resid_post_mlp", 1, 0)),
        ("attention_head_record", node("attn_write_norm", 0, 0)),
        ("attention_head_record", node("flattened_attn_write_to_latent_summed_over_heads", 1, 0)),
    ],
)
@pytest.mark.parametrize("folder", [FOLDER, None])
def test_what_there_is_no_record_of(endpoint: str, body: Any, folder: Any) -> None:
    found = answer(endpoint, body, folder)
    assert found.pop("dataset") == "tiny"
    assert not any(found.values())


def test_records_that_are_not_there_at_all() -> None:
    assert answer("neuron_record", node("mlp_post_act", 1, 2), None)["topActivations"] == []
    assert answer("neuron_datasets_metadata", folder=None) == []


def test_the_list_of_data_sets_has_what_the_viewer_knows() -> None:
    """Its page fails at other types; its addresses have the autoencoder's name as `/model_info` has it."""
    found = answer("neuron_datasets_metadata")
    assert [(one["shortName"], one["derivedScalarType"]) for one in found] == [
        ("tiny", "mlp_post_act"),
        ("tiny", "attn_write_norm"),
        ("tiny_resid-delta-mlp", "mlp_autoencoder_latent"),
    ]


@pytest.mark.parametrize("endpoint", ["explain", "score"])
def test_nothing_is_explained(endpoint: str) -> None:
    record = record_endpoints(FOLDER)[endpoint]
    with pytest.raises(FailedPrecondition, match="no neuron records"):
        record.answer(record.read({**node("mlp_post_act", 1, 2), "explanation": "names"}))


def test_what_the_workbench_shows_of_a_neuron() -> None:
    found = node_examples(FOLDER, NodeType.MLP_NEURON, 1, 2)
    assert found is not None
    assert found["examples"][0] == {
        "tokens": [
            {"text": "<b>", "activation": 9.0},
            {"text": " a", "activation": -1.0},
            {"text": "é", "activation": 4.0},
        ],
        "peak": 2,
    }
    assert [len(found[side]) for side in ("examples", "lowest", "random")] == [2, 1, 1]
    assert found["lowest"][0]["tokens"][1] == {"text": "z", "activation": -3.0}
    assert found["n_texts"] == 70
    assert found["fraction_active"] == 10 / 16
    low = 2.0**-8
    assert found["histogram"] == {
        "edges": [-4 * low, -3 * low, -2 * low, -1.5 * low, -low, 0.0, low, 1.5 * low, 2 * low],
        "counts": [2, 0, 0, 0, 0, 3, 0, 7],
    }
    json.dumps(found)


def test_what_the_workbench_shows_of_a_head() -> None:
    """At each token the most that it moves from one token, the first one not counted."""
    found = node_examples(FOLDER, NodeType.ATTENTION_HEAD, 1, 0)
    assert found is not None
    assert found["examples"] == [
        {
            "tokens": [
                {"text": "x", "activation": 0.0},
                {"text": "y", "activation": 1.0},
                {"text": "z", "activation": 2.0},
            ],
            "peak": 2,
            "attended_to": 1,
        }
    ]


def test_a_node_that_nobody_looked_at() -> None:
    assert node_examples(FOLDER, NodeType.MLP_NEURON, 0, 0) is None

"""The file that binds the example clients still says what the server answers."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from examples.vectors.make import VECTOR, vector
from tests.running_server import RunningServer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    file: dict[str, Any] = json.loads(VECTOR.read_text())
    return file


def close(number: float) -> Any:
    return pytest.approx(number, rel=TOLERANCE, abs=TOLERANCE)


def test_server_answers_as_written(server: RunningServer, written: dict[str, Any]) -> None:
    made = vector(server.channel)
    for name in ("model", "request", "refused"):
        assert made[name] == written[name]
    for answer, expected in zip(made["answers"], written["answers"], strict=True):
        assert answer["tokens"] == expected["tokens"]
        assert answer["loss"] == close(expected["loss"])
        assert by_node(answer) == {node: close(numbers) for node, numbers in by_node(expected).items()}
        for one, expected_one in zip(answer["sums"], expected["sums"], strict=True):
            assert one == {**expected_one, "values": close(expected_one["values"])}


def by_node(answer: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {one["node"]: {key: one[key] for key in one.keys() - {"node"}} for one in answer["nodes"]}


def test_rounding_cannot_change_which_nodes_are_strongest(written: dict[str, Any]) -> None:
    """The clients compare the order of the ten strongest nodes, so no two of them may be near."""
    sizes = [abs(one["directEffect"]) for one in written["answers"][0]["nodes"][:11]]
    assert all(larger - smaller > 10 * TOLERANCE for larger, smaller in itertools.pairwise(sizes))


def test_ablation_changes_the_answer(written: dict[str, Any]) -> None:
    plain, ablated = (one["loss"] for one in written["answers"])
    assert abs(plain - ablated) > 100 * TOLERANCE

"""Many prompts and many nodes against a real server: the same numbers as one call after another."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tdb_client import Ablation, AsyncClient, Client, DebugSubRequest, head, neuron
from tdb_client.cli import main

from tests.running_server import RunningServer

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " the", " of"
STARTS = ("the cat sat on the", "the dog ran to the", "the cat and the dog", "the dog sat on a")
LENGTHS = 8, 10, 12
SCALARS = ("direct_effect", "act_times_grad", "write_norm", "activation")
SUMMED = SCALARS[:3]
"""Of heads, MLPs and the embedding, which are summed over all tokens."""


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as one:
        yield one


@pytest.fixture(scope="module")
def prompts(server: RunningServer) -> list[str]:
    """Twelve prompts of three lengths, out of order."""
    found = []
    with Client(f"127.0.0.1:{server.port}") as client:
        for i in range(12):
            tokens = client.tokenize(STARTS[i % 4] + f" number {i} of all the other ones here").token_ids
            prompt = client.detokenize(tokens[: LENGTHS[i % 3]])
            assert len(client.tokenize(prompt)) == LENGTHS[i % 3]
            found.append(prompt)
    assert len(set(found)) == 12
    return found


def write(path: Path, prompts: list[str]) -> Path:
    lines = [{"prompt": one, "target": TARGET, "distractor": DISTRACTOR} for one in prompts]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


async def test_each_ablation_is_what_debug_says_of_it(client: Client, server: RunningServer) -> None:
    nodes: list[Any] = [
        head(1, 1, token=-1),
        "L1 head 0 @ 5",
        "L1 head 1 @ -1 -> 2",
        "L0 head 2 @ 4 = 0.25",
        neuron(2, 188, token=-1),
        Ablation(neuron(1, 5, token=3), 2.5),
        "L1 neuron 7 @ 0 = -1",
    ]
    effects = client.ablate_each(PROMPT, TARGET, DISTRACTOR, nodes)
    singly = [client.debug(PROMPT, TARGET, DISTRACTOR, ablate=one).loss for one in nodes]
    assert effects.objective == pytest.approx(client.debug(PROMPT, TARGET, DISTRACTOR).loss, abs=1e-5)
    np.testing.assert_allclose(effects.ablated, np.array(singly, float), atol=1e-5)
    assert np.all(np.abs(effects.change) > 1e-6)
    limit = client.model_info().limits.max_sub_requests
    many = [neuron(2, number, token=-1) for number in range(limit + 5)]
    whole = client.ablate_each(PROMPT, TARGET, DISTRACTOR, many)
    ends = client.ablate_each(PROMPT, TARGET, DISTRACTOR, [many[0], many[-1]])
    np.testing.assert_allclose(whole.ablated[[0, -1]], ends.ablated, atol=1e-5)
    async with AsyncClient(f"127.0.0.1:{server.port}") as other:
        same = await other.ablate_each(PROMPT, TARGET, DISTRACTOR, many)
    np.testing.assert_allclose(same.ablated, whole.ablated, atol=1e-5)


def test_prompts_of_several_lengths_are_answered_as_alone(client: Client, prompts: list[str]) -> None:
    """With an ablation beside each: the two of a prompt have the same nodes."""
    requests = []
    for prompt in prompts[:6]:
        plain = DebugSubRequest.of(prompt, TARGET, DISTRACTOR, k=3)
        requests += [plain, DebugSubRequest.of(prompt, TARGET, DISTRACTOR, k=3, ablate="L1 head 1 @ -1")]
    results = client.debug_many(requests)
    assert [one.request for one in results] == requests
    for before, after in zip(results[::2], results[1::2], strict=True):
        assert before.call == after.call
        assert before.nodes.nodes == after.nodes.nodes
        alone = client.debug(before.request.prompt, TARGET, DISTRACTOR, k=3)
        assert before.loss == pytest.approx(alone.loss, abs=1e-5)
        rows = [before.nodes.nodes.index(node) for node in alone.nodes.nodes]
        np.testing.assert_allclose(before.nodes.direct_effect[rows], alone.nodes.direct_effect, atol=1e-4)
    lengths = {one.call.request_id: len(one.prompt) for one in results}
    assert sorted(lengths.values()) == sorted(LENGTHS)


def by_hand(client: Client, prompts: list[str]) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """For each component and scalar what each prompt's own answer sums up to; and the objectives."""
    sums: dict[str, dict[str, list[float]]] = {}
    losses = []
    for i, prompt in enumerate(prompts):
        result = client.debug(prompt, TARGET, DISTRACTOR, k=3)
        losses.append(float(result.loss or 0.0))
        components, nodes = result.components, result.nodes
        for row, component in enumerate(components.components):
            for name in SUMMED:
                values = sums.setdefault(component, {}).setdefault(name, [0.0] * len(prompts))
                values[i] = float(components.scalar(name)[row])  # type: ignore[arg-type]
        for row, node in enumerate(nodes.nodes):
            for name in SCALARS if node.type == "mlp_neuron" else ():
                values = sums.setdefault(node.component, {}).setdefault(name, [0.0] * len(prompts))
                values[i] += float(nodes.scalar(name)[row])  # type: ignore[arg-type]
    return sums, losses


def test_a_table_of_means_is_what_separate_calls_give(
    client: Client, server: RunningServer, prompts: list[str], tmp_path: Path
) -> None:
    words = ["--out", str(tmp_path), "--server", f"127.0.0.1:{server.port}", "-k", "3"]
    assert main(["sweep", str(write(tmp_path / "in.jsonl", prompts)), *words]) == 0
    expected, losses = by_hand(client, prompts)
    rows = {row["component"]: row for row in table(tmp_path)}
    assert rows.keys() == expected.keys()
    for component, scalars in expected.items():
        for name, values in scalars.items():
            mean = sum(values) / 12
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 11)
            assert float(rows[component][name]) == pytest.approx(mean, abs=1e-4)
            error = float(rows[component][f"{name}_standard_error"])
            assert error == pytest.approx(deviation / math.sqrt(12), abs=1e-4)
        assert int(rows[component]["lines"]) == sum(value != 0 for value in scalars["write_norm"])
    written = (tmp_path / "objectives.jsonl").read_text(encoding="utf-8").splitlines()
    np.testing.assert_allclose([json.loads(one)["objective"] for one in written], losses, atol=1e-5)


def test_a_table_of_ablations_is_what_separate_calls_give(
    client: Client, server: RunningServer, prompts: list[str], tmp_path: Path
) -> None:
    nodes = ["L1 head 1 @ -1", "L2 neuron 188 @ -1 = 2", "L0 head 0 @ 3 -> 1"]
    words = ["--out", str(tmp_path), "--server", f"127.0.0.1:{server.port}", "--ablate-each", *nodes]
    assert main(["sweep", str(write(tmp_path / "in.jsonl", prompts)), *words]) == 0
    changes = np.array([client.ablate_each(one, TARGET, DISTRACTOR, nodes).change for one in prompts])
    rows = table(tmp_path)
    assert [row["node"] for row in rows] == nodes
    np.testing.assert_allclose([float(row["change"]) for row in rows], changes.mean(0), atol=1e-5)
    errors = [float(row["change_standard_error"]) for row in rows]
    np.testing.assert_allclose(errors, changes.std(0, ddof=1) / math.sqrt(12), atol=1e-5)


def test_a_sweep_that_was_killed_goes_on_to_the_same_table(
    server: RunningServer, prompts: list[str], tmp_path: Path
) -> None:
    file = write(
        tmp_path / "in.jsonl", [f"{one}{end}" for one in prompts for end in ("", " and", " of", " the")]
    )
    words = ["sweep", str(file), "--server", f"127.0.0.1:{server.port}", "-k", "1", "--out"]
    script = "import sys; from tdb_command import main; sys.exit(main())"
    done = tmp_path / "killed" / "done.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, *words, str(done.parent)]) as process:
        deadline = time.monotonic() + 60
        while not (done.exists() and done.read_bytes().count(b"\n") > 3) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
    n_done = done.read_bytes().count(b"\n") - 1
    assert 3 <= n_done < 48, "killed too late to be of use"
    for folder in (done.parent, tmp_path / "whole"):
        assert main([*words, str(folder)]) == 0
    killed, whole = (
        {row["component"]: row for row in table(tmp_path / name)} for name in ("killed", "whole")
    )
    assert killed.keys() == whole.keys()
    assert {row["type"] for row in whole.values()} == {"embedding", "head", "mlp", "mlp_neuron"}
    for component, row in whole.items():
        assert killed[component]["lines"] == row["lines"]
        for name in (one + error for one in SCALARS for error in ("", "_standard_error")):
            told = (float(one[name] or "nan") for one in (killed[component], row))
            assert next(told) == pytest.approx(next(told), abs=1e-4, nan_ok=True)

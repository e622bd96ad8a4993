"""Baselines, patches and circuits over the wire, with a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tdb_client import Circuit, Client, DebugSubRequest, InferenceSubRequest, Loss
from tdb_client.cli import main

from tests.running_server import RunningServer

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When John and Mary went to the store, John gave a drink to"
ASK = ["--prompt", PROMPT, "--target", " the", "--distractor", " of", "--baseline", OTHER]
N_COMPONENTS = 3 * 4 + 3


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as one:
        yield one


def test_effects_are_of_the_difference_from_the_baseline(client: Client) -> None:
    words = {"target": " the", "distractor": " of"}
    compared = client.debug(PROMPT, **words, baseline=OTHER, mlp="whole_mlp", attention="whole_head")
    itself = client.debug(PROMPT, **words, baseline=PROMPT)
    assert ["".join(one.tokens) for one in compared.baselines] == [OTHER]
    assert {node.type for node in compared.nodes.nodes} == {"whole_head", "whole_mlp", "layer"}
    assert abs(compared.nodes.act_times_grad).max() > 0
    assert not itself.nodes.act_times_grad.any()
    assert not itself.nodes.direct_effect.any()
    assert not itself.token_attribution.any()


def test_a_patch_is_spelled(
    client: Client, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    patches = [
        f"L{layer} whole head {index} @ {token} = baseline" for layer, index, token in ((0, 1, 9), (1, 2, -1))
    ]
    patched = client.debug(PROMPT, " the", " of", baseline=OTHER, ablate=patches)
    assert [one.value_type for one in patched.ablations] == ["baseline", "baseline", "number"]
    loss = Loss("logit_diff", (" the",), (" of",))
    (same,) = client.infer([InferenceSubRequest.of(PROMPT, loss, baseline=OTHER, ablate=patches)])
    assert same.loss == pytest.approx(patched.loss, abs=1e-4)
    address = ["--server", f"127.0.0.1:{server.port}"]
    assert main(["debug", *ASK, "--ablate", *patches, "--rows", "3", *address]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"ablated: {patches[0]}, {patches[1]}" in out
    # A token whose past is the same in both prompts has the same activations.
    (nothing, doubled) = client.debug_many(
        [
            DebugSubRequest.of(PROMPT, " the", " of", baseline=OTHER, ablate="L1 mlp @ 0 = baseline"),
            DebugSubRequest.of(PROMPT, " the", " of", ablate="L1 mlp @ -1 * 2"),
        ]
    )
    plain = client.debug(PROMPT, " the", " of").loss
    assert nothing.loss == pytest.approx(plain, abs=1e-4)
    assert abs((doubled.loss or 0) - (plain or 0)) > 1e-3
    assert abs((patched.loss or 0) - (plain or 0)) > 1e-4


def test_the_command_finds_a_circuit(
    client: Client, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "circuit.json"
    options = ["--json", str(kept), "--max-calls", "6", "--server", f"127.0.0.1:{server.port}"]
    assert main(["circuit", *ASK, *options]) == 0
    found = Circuit.load(kept)
    assert f"with {len(found)} of {N_COMPONENTS} heads and MLPs" in capsys.readouterr().out
    assert len(found.path) > 3
    assert found.path[-1].faithfulness == pytest.approx(1, abs=1e-3)
    (again,) = client.debug_many([found.sub_request()])
    assert again.circuit is not None
    assert again.circuit.faithfulness == pytest.approx(found.faithfulness, abs=1e-3)
    assert again.loss == pytest.approx(again.circuit.objective, abs=1e-4)
    sizes = [len(one) for one in found.path]
    assert sizes == sorted(set(sizes))
    assert all(one.faithfulness < found.wanted for one in found.path if len(one) < len(found))
    loss = Loss("logit_diff", found.target, found.distractor)
    runs = [
        InferenceSubRequest.of(found.prompt, loss, baseline=found.baseline, only_these=one.nodes)
        for one in found.path
    ]
    for told, measured in zip(found.path, client.infer(runs), strict=True):
        assert measured.circuit is not None
        assert measured.circuit.faithfulness == pytest.approx(told.faithfulness, abs=1e-3)

"""`tdb edges`: what it asks, and what it prints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tdb_client import Client, EdgesSubRequest, Loss, LossTokens
from tdb_client.cli import main
from tdb_client.cli.console import console
from tdb_client.cli.edge_tables import edge_page
from tdb_client.encoding import edges_request
from tdb_client.objective_words import objective_words
from tdb_client.report.data import circuit_words
from tdb_client.results import CircuitValues

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
EDGES = ["edges", "--prompt", "p", "--baseline", "q"]


def test_edges_are_printed_below_the_objective_in_words(fake: Fake, capsys: Output) -> None:
    assert main([*EDGES, "--target", " Mary", "--distractor", " John", "--server", fake[0]]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "logit ' Mary' - ' John' = 1.500"
    assert lines[4:6] == ["L0 head 0 logits -2.5000", "embedding L0 key head 0 +0.5000"]
    assert lines[6] == "2 of 2 listed edges"


@pytest.mark.parametrize(
    ("options", "loss", "words"),
    [
        (
            ["--target", " Mary", "--loss", "log_prob", "--at", "1"],
            Loss("log_prob", " Mary", token=1),
            "log-probability ' Mary' @ 1",
        ),
        (["--target-id", "5", "--loss", "probs"], Loss("probs", 5), "probability ' Mary' (token 5)"),
        (["--loss", "kl_from_baseline"], Loss("kl_from_baseline"), "KL from the baseline"),
    ],
)
def test_other_objectives(fake: Fake, capsys: Output, options: list[str], loss: Loss, words: str) -> None:
    assert main([*EDGES, *options, "--server", fake[0]]) == 0
    assert capsys.readouterr().out.startswith(f"{words} = 1.500\n")
    asked = edges_request([EdgesSubRequest("p", loss, ("q",))]).sub_requests[0]
    assert fake[1].requests[-1].sub_requests[0] == asked


def test_an_objective_is_required(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*EDGES, "--loss", "log_prob"])
    assert ended.value.code == 2
    assert "required: --target or --target-id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Loss("logit_diff", (5,), (" John",)), "logit ' Mary' (token 5) - ' John'"),
        (Loss("logit_diff", (6,)), "logit token 6"),
        (Loss("log_prob", (" Mary",), token=-1), "log-probability ' Mary'"),
        (
            Loss("log_prob", (" Mary", " on"), token=3, target_weights=(1, 2)),
            "weighted log-probability ' Mary', ' on' @ 3",
        ),
        (Loss("kl_from_baseline", token=0), "KL from the baseline @ 0"),
    ],
)
def test_objectives_in_words(loss: Loss, words: str) -> None:
    assert objective_words(loss, LossTokens((5,), (" Mary",))) == words


def test_words_need_no_answer() -> None:
    assert objective_words(EdgesSubRequest.of("p", [" Mary", 5], baseline="q").loss, None) == (
        "logit ' Mary', token 5"
    )


def test_small_numbers_keep_their_digits(fake: Fake, capsys: Output) -> None:
    """As those of a probability are."""
    with Client(fake[0]) as client:
        edges = client.edges("p", " Mary", baseline="q")
        effects = client.ablate_each("p", " Mary", nodes="L0 neuron 5 @ 2")
        answer = client.debug("p", " Mary", baseline="q", only_these=["L0 mlp"])
    scores = replace(edges.result, edge_scores=np.array([-2e-6, 0.0]))
    console().print(edge_page(replace(edges, result=scores), 0))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[4:6] == ["L0 head 0 logits -2.0e-06", "embedding L0 key head 0 0"]
    assert " = 3.0e-06, " in repr(replace(effects, objective=3e-6))
    values = CircuitValues(objective=2e-6, of_prompt=3e-6, of_baseline=1e-6, faithfulness=0.5)
    small = replace(answer, loss=3e-6, circuit=values)
    assert " = 3.0e-06, " in repr(small)
    assert "faithfulness 0.500 (prompt 3.0e-06, baseline 1.0e-06)" in circuit_words(small)

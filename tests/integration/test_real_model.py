"""The default model, SmolLM2, explains why it says " Mary": what the demo and the tutorial promise."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tdb_client import Client, DebugSubRequest, head
from tdb_client.cli import main

from tests.running_server import RunningServer

PROMPT = "When Mary and John went to the store, John gave a drink to"
MARY, JOHN, LAST = 1, 9, 13  # where these tokens stand
SERVICE = "transformer_debugger.v1.TransformerDebuggerService/StreamDebug"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(smollm2: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{smollm2.port}") as one:
        yield one


def test_mary_is_the_top_logit(client: Client) -> None:
    logits = client.debug(PROMPT, " Mary", " John").logits
    assert logits.tokens[0] == " Mary"
    assert logits.logits[0] == pytest.approx(11.04, abs=0.05)


def test_heads_that_read_the_name_stand_among_the_top_direct_effects(client: Client) -> None:
    nodes = client.debug(PROMPT, " Mary", " John", k=15).nodes
    strongest = [nodes.nodes[row] for row in nodes.strongest()[:15]]
    reading = [node for node in strongest if node.type == "attention_head" and node.attended_to == MARY]
    assert len(reading) >= 3


def test_other_heads_make_up_for_the_strongest_one(client: Client) -> None:
    strongest = head(23, 3, token=LAST)
    plain, ablated = client.debug_many(
        [
            DebugSubRequest.of(PROMPT, " Mary", " John", k=15),
            DebugSubRequest.of(PROMPT, " Mary", " John", k=15, ablate=[strongest]),
        ]
    )
    assert plain.loss is not None
    assert ablated.loss is not None
    assert ablated.loss < plain.loss - 2
    gain = ablated.nodes.direct_effect - plain.nodes.direct_effect
    later = [
        (float(gain[row]), node)
        for row, node in enumerate(plain.nodes.nodes)
        if node.type == "attention_head" and node.layer is not None and node.layer > 23
    ]
    assert max(later, key=lambda one: one[0])[0] > 0.1


def test_a_trace_says_why_the_head_looks_where_it_looks(
    smollm2: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["trace", f"L23 head 3 @ -1 -> {JOHN}", "--type", "K", "--prompt", PROMPT, "--json"]
    assert main([*command, "--server", f"127.0.0.1:{smollm2.port}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer


def test_reflection_alone_is_enough_for_a_generic_client(smollm2: RunningServer) -> None:
    buf = Path(__file__).parents[2] / ".venv" / "bin" / "buf"
    request = {"subRequests": [{"prompt": PROMPT, "targetTokens": [" Mary"], "topAndBottomK": 3}]}
    found = subprocess.run(
        [
            *(str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge"),
            *("--data", json.dumps(request), f"http://127.0.0.1:{smollm2.port}/{SERVICE}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"started"' in found.stdout
    assert '"finished"' in found.stdout

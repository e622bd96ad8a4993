"""docs/tutorial.md, worked through: every command runs and prints what is shown, every claim holds."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tdb_client import Circuit, Client, DebugResult, DebugSubRequest, head

from tests.integration.tutorial_page import Step, missing, steps

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
STEPS = steps(PAGE)
SERVE = "tdb-server serve\n"
COLUMNS = "100"
DONE = "@@done@@"
READY_SECONDS = 120.0


@dataclass
class Walk:
    """The page worked through: what each step printed, what the programs defined, what lies in the folder."""

    server: str
    folder: Path
    printed: dict[Step, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("tutorial")
    ready = folder / "ready.json"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        environment.setenv("COLUMNS", COLUMNS)
        environment.setenv("TDB_SERVER_PORT", "0")
        environment.setenv("TDB_SERVER_READY_FILE", str(ready))
        assert STEPS[0].text == SERVE
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(SERVE.split(), stderr=log)
        try:
            environment.setenv("TDB_SERVER", f"127.0.0.1:{_port(server, ready)}")
            done = Walk(os.environ["TDB_SERVER"], folder)
            _work_through(done)
            yield done
        finally:
            server.terminate()
            server.wait(30)


def _port(server: subprocess.Popen[bytes], ready: Path) -> int:
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not get ready"
        time.sleep(0.05)
    port: int = json.loads(ready.read_text())["grpc_port"]
    return port


def _work_through(walk: Walk) -> None:
    """Runs every step but the first: shell commands in one shell, programs in one namespace."""
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=walk.folder,
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    with shell, contextlib.closing(shell.stdin):
        for step in STEPS[1:]:
            if step.language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(step.text, walk.names)
                walk.printed[step] = out.getvalue()
                continue
            shell.stdin.write(f"{step.text}echo {DONE}\n")
            shell.stdin.flush()
            lines: list[str] = []
            for line in shell.stdout:
                if line.strip() == DONE:
                    break
                lines.append(line)
            else:
                pytest.fail(f"{step.text}failed with\n{''.join(lines)}")
            walk.printed[step] = "".join(lines)
    walk.names["client"].close()


@pytest.fixture(scope="module")
def client(walk: Walk) -> Iterator[Client]:
    with Client(walk.server) as one:
        yield one


@pytest.fixture(scope="module")
def plain(walk: Walk, client: Client) -> DebugResult:
    return client.debug(walk.names["PROMPT"], " Mary", " John", k=30)


@pytest.mark.parametrize("step", STEPS[1:], ids=lambda step: step.heading.partition(".")[0])
def test_commands_print_what_is_shown(walk: Walk, step: Step) -> None:
    printed = walk.printed[step]
    assert missing(step.shown, printed) == [], printed


def test_what_is_not_printed_is_noticed() -> None:
    printed = "logit ' Mary' = 6.120 plain\nL23 head 3   2.873\n"
    assert missing(("logit ' Mary' = 6.121 plain", "…", "L23 head 3 …"), printed) == []
    assert missing(("logit ' Mary' = 6.320 plain",), printed)
    assert missing(("' John' @ 3: +3.801, …",), "' John' @ 3: +3.802, ' John' @ 9: +3.794") == []
    assert missing(("L23 head 4 …",), printed)
    assert missing(("L23 head 3 2.873", "logit ' Mary' …"), printed) == ["logit ' Mary' …"]  # wrong order


def test_the_page_is_as_rich_as_it_says() -> None:
    assert len(STEPS) >= 15
    assert sum(len(step.shown) for step in STEPS) > 50


def test_mary_is_far_ahead(plain: DebugResult) -> None:
    assert plain.loss is not None
    assert 400 < math.exp(plain.loss) < 500
    assert plain.logits.tokens[0] == " Mary"


def test_the_suppressing_head_writes_against_the_name_it_reads(plain: DebugResult) -> None:
    row = plain.nodes.nodes.index(head(23, 3, token=13, attended_to=9))
    tokens = plain.nodes.upvoted_tokens[row]
    assert tokens is not None
    assert tokens.bottom.tokens[0] == " John"
    assert plain.nodes.strongest()[0] == row


def test_neurons_of_the_last_token_add_most(plain: DebugResult) -> None:
    sums = plain.sums["direction_write"]
    neurons = sums["mlp_write_to_final_residual_grad"]
    heads = sums["unflattened_attn_write_to_final_residual_grad"]
    assert neurons[13] == pytest.approx(4.54, abs=0.05)
    assert heads.sum() == pytest.approx(1.62, abs=0.05)


def test_the_steering_heads_top_the_lists_of_the_copying_head(client: Client, walk: Walk) -> None:
    for attended_to, layer, index in ((1, 20, 0), (3, 19, 2)):
        trace = f"L23 head 0 @ -1 -> {attended_to} through Q"
        nodes = client.debug(walk.names["PROMPT"], trace=trace).nodes
        first = nodes.nodes[nodes.strongest()[0]]
        assert first == head(layer, index, token=13, attended_to=9)


def test_every_repeat_detector_is_among_the_first_thirty(client: Client, walk: Walk) -> None:
    nodes = client.debug(walk.names["PROMPT"], trace="L23 head 3 @ -1 -> 9 through K").nodes
    first = [nodes.nodes[row] for row in nodes.strongest()[:30]]
    for one in walk.names["STAGES"]["repeat"]:
        assert head(one.layer, one.index, token=9, attended_to=3) in first


def test_other_heads_do_not_matter(walk: Walk, plain: DebugResult) -> None:
    assert len(walk.names["CIRCUIT"]) == 13
    losses = [one.loss for one in walk.names["controls"]]
    assert len(losses) == 8
    assert all(5 < loss < 7 for loss in losses)
    controls = [{one.node for one in control.request.ablate} for control in walk.names["controls"]]
    assert all(len(one) == 10 and not one & set(walk.names["CIRCUIT"]) for one in controls)


def test_the_better_guess_begins_with_the_circuit_that_was_found(walk: Walk) -> None:
    found = Circuit.load(walk.folder / "circuit.json")
    assert {str(one) for one in found.nodes} == set(walk.names["ranked"][:5])


def test_the_same_heads_serve_other_names(client: Client, walk: Walk) -> None:
    prompt = "When Susan and Tom went to the park, Tom gave a ball to"
    whole = DebugSubRequest.of(prompt, " Susan", " Tom")
    without = DebugSubRequest.of(prompt, " Susan", " Tom", ablate=walk.names["CIRCUIT"])
    with_circuit, without_circuit = (one.loss for one in client.debug_many([whole, without]))
    assert with_circuit is not None
    assert without_circuit is not None
    assert without_circuit < with_circuit / 4


def test_the_programs_of_other_pages_run(walk: Walk) -> None:
    names: dict[str, Any] = {}
    with contextlib.chdir(walk.folder):  # where some of them write files
        for page in ("sweeps.md", "concepts.md"):
            for step in steps(PAGE.with_name(page)):
                exec(step.text, names)
    pattern = names["answer"].results["pattern"].scalars
    assert pattern.shape == (5, 5)
    assert pattern.sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_what_is_kept_can_be_read(walk: Walk) -> None:
    page = (walk.folder / "report.html").read_text(encoding="utf-8")
    assert "L23 head 3 @ -1" in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    with (walk.folder / "nodes.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 111

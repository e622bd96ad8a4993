"""`tdb ablate`: where its nodes come from, and what it prints."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tdb_client import Client
from tdb_client.cli import main
from transformer_debugger.v1 import loss_pb2

from tests.unit.client.fake_service import SLOW, FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
ABOUT = ["--prompt", "p", "--target", " Mary", "--distractor", " John"]


def ablated(service: FakeService) -> list[int]:
    """The last index of every node that the last call ablated."""
    specs = [one.inference_spec.ablation_specs for one in service.requests[-1].sub_requests[1:]]
    return [one[0].index.tensor_indices[-1].index for one in specs]


def test_nodes_are_named(fake: Fake, capsys: Output) -> None:
    nodes = ["L1 head 2 @ -1", "L0 neuron 5 @ 2 = 2.5", "L1 head 3 @ 3 -> 0"]
    assert main(["--server", fake[0], "ablate", *nodes, *ABOUT]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "logit ' Mary' - ' John' = 3.000 with nothing ablated"
    assert lines[4:7] == [  # the largest change first
        "L0 neuron 5, ' gave' = 2.5 2 -0.078 -3.078",
        "L1 head 3, ' to' → 'When' 3 → 0 2.453 -0.547",
        "L1 head 2, ' to' 3 2.469 -0.531",
    ]
    assert main(["--server", fake[0], "ablate", *nodes, *ABOUT, "--rows", "1"]) == 0
    assert "1 of 3 nodes, each ablated by itself; --rows 0 shows all" in capsys.readouterr().out


def test_what_is_done_with_a_node_is_said(fake: Fake, capsys: Output) -> None:
    """A node that is multiplied, added to or patched is not shown as one that is set to that number."""
    node = "L0 neuron 5 @ 2"
    nodes = [node, *(f"{node} {change}" for change in ("= 2.5", "* 2.5", "+ 2.5", "= baseline"))]
    command = ["--server", fake[0], "ablate", *nodes, *ABOUT, "--baseline", "q"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for change in ("= 2.5", "* 2.5", "+ 2.5", "= baseline"):
        assert out.count(f"L0 neuron 5, ' gave' {change} ") == 1
    done = [("0", "number"), *(("2.5", way) for way in ("number", "scale", "add")), ("0", "baseline")]
    assert main([*command, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["value"], row["value_type"]) for row in rows] == done
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["nodes"]
    assert [(f"{one['value']:g}", one["value_type"]) for one in printed] == done


def test_nodes_of_a_debug_answer(fake: Fake, capsys: Output, tmp_path: Path) -> None:
    """Those that can be ablated, strongest first: embeddings cannot."""
    assert main(["debug", *ABOUT, "--json", "--server", fake[0]]) == 0
    file = tmp_path / "debug.json"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    listed = ["ablate", *ABOUT, "--nodes-from", str(file), "--server", fake[0]]
    assert main(listed) == 0
    assert ablated(fake[1]) == [2, 5, 4, 9]
    assert main([*listed, "--strongest", "2", "--sort", "activation"]) == 0
    assert ablated(fake[1]) == [4, 9]
    assert main(["ablate", "L0 neuron 7 @ 0", *listed[1:], "--strongest", "1"]) == 0
    assert ablated(fake[1]) == [7, 2]


def test_the_strongest_nodes_of_the_prompt(fake: Fake, capsys: Output) -> None:
    strongest = ["ablate", *ABOUT, "--strongest", "2", "--server", fake[0]]
    assert main(strongest) == 0
    assert ablated(fake[1]) == [2, 5]
    assert main([*strongest, "--sort", "act_times_grad"]) == 0
    assert ablated(fake[1]) == [2, 5]
    assert main(["ablate", "L0 neuron 7 @ 0", *strongest[1:]]) == 0
    assert ablated(fake[1]) == [7, 2, 5]


def test_other_objectives(fake: Fake, capsys: Output) -> None:
    """They are those of the runs and, of the table that nodes are taken from, too."""
    words = ["ablate", "--strongest", "2", "--prompt", "p", "--server", fake[0]]
    assert main([*words, "--target", " Mary", "--loss", "log_prob", "--at", "2", "--baseline", "q"]) == 0
    assert capsys.readouterr().out.startswith("log-probability ' Mary' @ 2 = 3.000 with nothing ablated\n")
    debug, infer = fake[1].requests[-2:]
    (listing,) = debug.sub_requests
    run = infer.sub_requests[-1].inference_spec
    assert run.loss_fn_config == listing.loss_fn_config
    assert (run.loss_fn_config.name, run.loss_fn_config.token_index) == (loss_pb2.LOSS_FN_NAME_LOG_PROB, 2)
    assert (list(listing.baseline_prompts), list(run.baseline_prompts)) == ([], ["q"])
    assert main([*words, "--loss", "kl_from_baseline", "--baseline", "q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objective_name"] == "KL from the baseline"
    assert list(fake[1].requests[-2].sub_requests[0].baseline_prompts) == ["q"]


def test_forms_for_programs(fake: Fake, capsys: Output) -> None:
    pandas = pytest.importorskip("pandas")
    nodes = ["L1 head 2 @ -1", "L0 neuron 5 @ 2 = 2.5"]
    command = ["ablate", *nodes, *ABOUT, "--server", fake[0]]
    assert main([*command, "--csv"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["node"], row["value"], row["change"]) for row in rows] == [
        ("L1 head 2 @ 3", "0", "-0.53125"),
        ("L0 neuron 5 @ 2", "2.5", "-3.078125"),
    ]
    with Client(fake[0]) as client:
        frame = client.ablate_each("p", " Mary", " John", nodes).to_frame()
    assert list(pandas.read_csv(io.StringIO(text)).columns) == list(frame.columns)
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["objective"], printed["tokens"][1]) == (3.0, " Mary")
    assert [(one["node"], one["change"]) for one in printed["nodes"]] == [
        ("L1 head 2 @ 3", -0.53125),
        ("L0 neuron 5 @ 2", -3.078125),
    ]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--prompt", "p", "--target", "x"], "say which nodes: NODE..., --nodes-from FILE or --strongest K"),
        (["L0 neuron 5 @ 2", "--prompt", "p"], "required: --target"),
        (["L0 neuron 5 @ 2", "--prompt", "p", "--loss", "probs"], "required: --target"),
        (["L0 nron 5 @ 2", *ABOUT], "'L0 nron 5 @ 2' is not a node"),
        ([*ABOUT, "--strongest", "0"], "0 is below 1"),
    ],
)
def test_mistakes_in_the_command_line(capsys: Output, arguments: list[str], hint: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ablate", *arguments])
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["L0 neuron 5 @ 2", "L0 neuron 5 @ -9"], "tdb: 'L0 neuron 5 @ -9': token -9 does not exist"),
        (["--nodes-from", "/no/such/file"], "tdb: cannot read /no/such/file: No such file or directory"),
        (
            ["--nodes-from", "{FILE}"],
            "tdb: --nodes-from: {FILE} does not hold what `tdb debug --json` prints",
        ),
        (["embedding @ 1"], "tdb: embedding @ 1 cannot be ablated"),
    ],
)
def test_failures_name_what_was_typed(
    fake: Fake, capsys: Output, tmp_path: Path, arguments: list[str], line: str
) -> None:
    file = tmp_path / "file.json"
    file.write_text('{"sub_requests": [{"result": {"nodes": [{"node": "L0"}]}}]}')
    words = [one.replace("{FILE}", str(file)) for one in arguments]
    assert main(["ablate", *words, *ABOUT, "--server", fake[0]]) == 1
    said = capsys.readouterr().err
    assert said.startswith(line.replace("{FILE}", str(file)))
    assert said.count("\n") == 1


def test_an_interrupt_ends_all_calls(fake: Fake) -> None:
    server, service = fake
    service.max_sub_requests = 1
    script = "import sys; from tdb_command import main; sys.exit(main())"
    words = ["ablate", *["L0 neuron 5 @ 2"] * 3, "--prompt", SLOW, "--target", "x", "--server", server]
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 30
        while not service.requests and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, b"", b"")

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tdb_client import Client
from tdb_client.cli import main, progress
from tdb_client.cli.arguments import parse
from tdb_client.cli.exit_codes import MEANINGS, ExitCode
from tdb_client.cli.help_text import EXAMPLES, FIRST_STEPS
from tdb_client.cli.progress import shown_progress
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP
from transformer_debugger.v1.model_service_pb2 import AutoencoderSite

from tests.unit.client.fake_service import BUSY, NODES, REFUSED, SLOW, FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
DEBUG = ["debug", "--prompt", "When Mary gave to", "--target", " Mary", "--distractor", " John"]


def test_debug_prints_tables(fake: Fake, capsys: Output) -> None:
    assert main(["--server", fake[0], *DEBUG, "-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert "L1 head 2, ' to' → ' Mary'" in out
    assert "logit ' Mary' - ' John' = 3.000" in out
    assert err == ""  # no progress where stderr is no terminal
    assert fake[1].requests[0].sub_requests[0].top_and_bottom_k == 3


def test_tables_are_as_long_as_asked_for(fake: Fake, capsys: Output) -> None:
    assert main(["--server", fake[0], *DEBUG, "--rows", "1", "--logits", "0"]) == 0
    out = capsys.readouterr().out
    assert "1 of " in out
    assert "top logits" not in out


def test_an_estimate_computes_nothing(fake: Fake, capsys: Output) -> None:
    estimate = ["--server", fake[0], *DEBUG, "--estimate"]
    assert main(estimate) == 0
    assert "time on a worker: unknown" in capsys.readouterr().out
    fake[1].estimated_seconds = 0.25
    assert main(estimate) == 0
    assert "time on a worker: 0.25 s" in capsys.readouterr().out
    assert main([*estimate, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "activation_bytes": 1234,
        "response_bytes": 56,
        "seconds": 0.25,
    }
    assert all(one.validate_only for one in fake[1].requests)


def test_ablations_are_run_side_by_side(fake: Fake, capsys: Output) -> None:
    ablate = ["--ablate", "L1 head 2 @ -1", "L0 neuron 5 @ 3 = 2.5", "--ablate", "L0 neuron 6 @ 3"]
    assert main([*DEBUG, *ablate, "--hide-early-layers", "--server", fake[0]]) == 0
    plain, ablated = fake[1].requests[-1].sub_requests
    assert not plain.node_ablations
    assert not plain.hide_early_layers_when_ablating
    assert [one.value for one in ablated.node_ablations] == [0, 2.5, 0]
    assert ablated.hide_early_layers_when_ablating
    assert "difference -1.500" in capsys.readouterr().out


def test_latents_of_the_residual_stream_are_asked_for(fake: Fake, capsys: Output) -> None:
    places = ["--residual-stream", "post_attn_latent", "--residual-stream", "post_mlp_latent"]
    assert main([*DEBUG, *places, "--json", "--server", fake[0]]) == 0
    assert list(fake[1].requests[-1].sub_requests[0].component_types_for_residual_stream) == [1, 2]
    request = json.loads(capsys.readouterr().out)["sub_requests"][0]["request"]
    assert request["residual_stream"] == ["post_attn_latent", "post_mlp_latent"]


def one_line(out: str) -> str:
    """Whatever the width."""
    return " ".join(out.split())


def said_of_dictionaries(out: str) -> list[str]:
    return [line.strip() for line in out.splitlines() if "loaded dictionaries" in line]


@pytest.mark.parametrize("arguments", [DEBUG, ["trace", "L0 neuron 5 @ 3", "--prompt", "p"]], ids=str)
@pytest.mark.parametrize("ablate", [[], ["--ablate", "L1 head 2 @ -1"]], ids=str)
def test_who_sees_no_latents_is_told_how_to(
    fake: Fake, capsys: Output, arguments: list[str], ablate: list[str]
) -> None:
    asked = [*arguments, *ablate, "--server", fake[0]]
    assert main(asked) == 0
    hint = "to list latents of loaded dictionaries: --mlp autoencoder_latent"
    assert said_of_dictionaries(capsys.readouterr().out) == [hint]
    for wanted in (["--mlp", "autoencoder_latent"], ["--residual-stream", "post_mlp_latent"]):
        assert main([*asked, *wanted]) == 0
        assert said_of_dictionaries(capsys.readouterr().out) == []


@pytest.mark.parametrize("form", ["--json", "--csv", "--html"])
def test_what_is_for_programs_holds_no_hints(fake: Fake, capsys: Output, tmp_path: Path, form: str) -> None:
    form_and_file = [form, str(tmp_path / "report.html")] if form == "--html" else [form]
    assert main([*DEBUG, *form_and_file, "--server", fake[0]]) == 0
    assert "dictionaries" not in "".join(capsys.readouterr())


def test_nothing_is_said_of_dictionaries_where_none_is_known(fake: Fake, capsys: Output) -> None:
    fake[1].sites = ()
    assert main([*DEBUG, "--server", fake[0]]) == 0
    fake[1].is_silent = True
    assert main([*DEBUG, "--server", fake[0]]) == 0
    fake[1].is_silent, fake[1].sites = False, (9999,)  # newer than this client
    assert main([*DEBUG, "--server", fake[0]]) == 0
    out, err = capsys.readouterr()
    assert "dictionaries" not in out
    assert err == ""


def test_every_kind_of_dictionary_has_an_option(fake: Fake, capsys: Output) -> None:
    fake[1].sites = tuple(AutoencoderSite.values()[1:])
    assert main([*DEBUG, "--server", fake[0]]) == 0
    said = re.search(
        r"to list latents of loaded dictionaries: ((?:--\S+ \w+(?:, )?)+)", one_line(capsys.readouterr().out)
    )
    assert said is not None
    options = said[1].split(", ")
    assert len(set(options)) == len(options) == 5
    assert "--mlp transcoder_latent" in options
    assert main(["info", "--server", fake[0]]) == 0
    out = one_line(capsys.readouterr().out)
    for option in options:
        assert f"({option}): 80 latents" in out
        assert parse([*DEBUG, *option.split()])
    assert "resid_post_mlp (--residual-stream post_mlp_latent): 80 latents" in out
    assert out.count(": 80 latents") == len(fake[1].sites) == 7


def test_sweeps_let_others_go_first(fake: Fake) -> None:
    for arguments in (DEBUG, [*DEBUG, "--priority", "sweep"], ["--priority", "sweep", *DEBUG]):
        assert main(["--server", fake[0], *arguments]) == 0
    told = [one.priority for one in fake[1].requests if hasattr(one, "priority")]
    assert told == [PRIORITY_INTERACTIVE, PRIORITY_SWEEP, PRIORITY_SWEEP]


def test_trace_explains_a_node(fake: Fake, capsys: Output) -> None:
    node = "L1 head 2 @ -1 -> 1"
    assert main(["trace", node, "--type", "QK", "--prompt", "p", "--server", fake[0]]) == 0
    sub_request = fake[1].requests[-1].sub_requests[0]
    assert sub_request.upstream_node_to_trace.node_index.tensor_indices == [3, 1, 2]
    assert sub_request.upstream_node_to_trace.attention_trace_type == 3
    assert sub_request.target_tokens == []
    downstream = ["--downstream", "L1 head 0 @ 3 -> 2 through Q", "--ablate", "L0 neuron 6 @ 3"]
    assert main(["trace", f"{node} through V", *downstream, "--prompt", "p", "--server", fake[0]]) == 0
    sub_request = fake[1].requests[-1].sub_requests[1]
    assert sub_request.downstream_node_to_trace.attention_trace_type == 1
    out = capsys.readouterr().out
    assert "through QK = 2.750" in out
    assert "= 2.750 plain, 2.250 ablated" in out


def test_json_is_for_programs(fake: Fake, capsys: Output) -> None:
    assert main([*DEBUG, "--ablate", "L1 head 2 @ -1", "--json", "--server", fake[0]]) == 0
    printed = json.loads(capsys.readouterr().out)
    plain, ablated = printed["sub_requests"]
    assert ablated["request"]["ablate"] == ["L1 head 2 @ -1"]
    assert plain["result"]["loss"] == 3.0
    node = plain["result"]["nodes"][1]
    assert node["node"] == "L1 head 2 @ 3 -> 1"
    assert node["query_tokens"]["top"][0] == {"token": " Mary", "token_id": 7, "score": 4.0}
    assert node["input_tokens"] is None
    assert plain["result"]["nodes"][4]["attended_to_tokens"][0] == {"token": 1, "attribution": 2.5}
    assert plain["result"]["sums"]["act_times_grad"]["token_attribution"] == [
        0.0,
        1.5,
        -0.5,
        None,
    ]  # from nan
    assert main(["info", "--json", "--server", fake[0]]) == 0
    assert json.loads(capsys.readouterr().out)["n_layers"] == 2
    assert main(["tokenize", "x", "--json", "--server", fake[0]]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"][1] == " Mary"


def test_info_and_tokenize(fake: Fake, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDB_SERVER", fake[0])
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "80 latents, topk 4, inputs layer normed, layers 0, 1" in one_line(out)
    assert "6 of 8 channels, 2 key/value heads" in out
    assert main(["tokenize", "x"]) == 0
    assert "' Mary'" in capsys.readouterr().out


def test_the_token_comes_from_a_file(fake: Fake, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    assert main(["info", "--server", fake[0], "--token-file", str(token)]) == 0
    assert fake[1].metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["debug", "--prompt", REFUSED, "--target", "x"],
            "tdb: --prompt: is a joke; --target: is two tokens",
        ),
        (["debug", "--prompt", BUSY, "--target", "x"], "tdb: queue full (try again in 1.5 s)"),
        (["debug", "--prompt", SLOW, "--target", "x", "--timeout", "0.2"], "tdb: Deadline Exceeded"),
        (
            [*DEBUG, "--ablate", "L1 head 2 @ -9"],
            "tdb: --ablate 'L1 head 2 @ -9': token -9 does not exist in a prompt of 4",
        ),
        (["info", "--server", "127.0.0.1:1"], "tdb: no server answers at 127.0.0.1:1"),
        (
            ["info", "--token-file", "/no/such/file"],
            "tdb: [Errno 2] No such file or directory: '/no/such/file'",
        ),
    ],
)
def test_failures_are_one_line_and_code_1(
    fake: Fake, capsys: Output, arguments: list[str], line: str
) -> None:
    assert main(["--server", fake[0], *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "required: COMMAND"),
        (["debug", "--prompt", "p"], "required: --target"),
        ([*DEBUG, "--ablate", "L1 hed 2 @ 1"], "'L1 hed 2 @ 1' is not a node, such as"),
        ([*DEBUG, "--rows", "-1"], "-1 is below 0"),
        ([*DEBUG, "--target-id", "x"], "'x' is not a whole number"),
        ([*DEBUG, "--timeout", "0"], "0 is not above 0"),
        (["trace", "L1 head 2 @ 1", "--prompt", "p"], "say which token L1 head 2 @ 1 attends to"),
        (["trace", "L1 head 2 @ 1 -> 0", "--prompt", "p"], "a head needs --type"),
        (["trace", "L1 head 2 @ 1 -> 0", "--prompt", "p", "--type", "V"], "needs --downstream, or --target"),
        (["trace", "L1 neuron 2 @ 1", "--prompt", "p", "--type", "V"], "--type is for heads"),
        (["info", "--tls-cert", "c.pem"], "--tls-cert and --tls-key belong together"),
    ],
)
def test_mistakes_in_the_command_line_are_code_2(capsys: Output, arguments: list[str], hint: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_what_is_meant_for_programs_is_one_form(capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*DEBUG, "--json", "--csv"])
    assert ended.value.code == ExitCode.USAGE
    assert "not allowed with argument" in capsys.readouterr().err


def test_csv_has_a_row_per_node(fake: Fake, capsys: Output) -> None:
    assert main([*DEBUG, "--csv", "--server", fake[0]]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["node"] for row in rows] == list(NODES)
    assert rows[1]["words"] == "L1 head 2, ' to' → ' Mary'"
    assert (rows[0]["layer"], rows[1]["layer"], rows[1]["attended_to"]) == ("", "1", "1")
    assert [float(row["direct_effect"]) for row in rows] == pytest.approx([0.0, 4.0, -0.5, 1e-5, 0.25])
    assert json.loads(rows[0]["upvoted_tokens"]) == [" Mary", " [bold]the"]
    assert json.loads(rows[0]["input_tokens"]) == []
    assert main([*DEBUG, "--csv", "--ablate", "L1 head 2 @ -1", "--server", fake[0]]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (rows[1]["direct_effect"], rows[1]["ablated_direct_effect"]) == ("4", "3.5")


def test_csv_has_the_columns_of_the_frame(fake: Fake, capsys: Output) -> None:
    pandas = pytest.importorskip("pandas")
    assert main([*DEBUG, "--csv", "--server", fake[0]]) == 0
    read = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    with Client(fake[0]) as client:
        frame = client.debug("p", " Mary").to_frame()
    assert list(read.columns) == list(frame.columns)
    assert read["node"].tolist() == frame["node"].tolist()


def test_html_is_a_file(fake: Fake, capsys: Output, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    trace = ["trace", "L0 neuron 5 @ 3", "--prompt", "p"]
    for arguments in (DEBUG, [*DEBUG, "--ablate", "L1 head 2 @ -1"], trace):
        assert main([*arguments, "--html", str(file), "--server", fake[0]]) == 0
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"tdb: wrote {file}\n")
        assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main([*DEBUG, "--html", str(file), "--json", "--server", fake[0]]) == 0
    assert json.loads(capsys.readouterr().out)["sub_requests"][0]["result"]["loss"] == 3.0
    assert main([*DEBUG, "--html", str(tmp_path), "--server", fake[0]]) == ExitCode.FAILED
    assert "Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], *([one] for one in EXAMPLES)])
def test_help_teaches(capsys: Output, command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out or "first steps:" in out
    assert ("--server HOST:PORT" in out) == (command != ["completion"])
    assert ("L9 head 6 @ 13 -> 2" in out) == (command in (["debug"], ["trace"], ["ablate"], ["sweep"]))
    assert max(map(len, out.splitlines())) <= 120


def test_help_names_every_exit_code(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {code:<4} {meaning}\n" in out for code, meaning in MEANINGS.items())
    assert set(MEANINGS) == set(ExitCode)


def test_examples_of_the_help_are_command_lines() -> None:
    lines = re.sub(r"\\\n\s*", "", "\n".join([FIRST_STEPS, *EXAMPLES.values()])).splitlines()
    examples = [
        re.split(r" {3,}| \| | > ", line.strip())[0]
        for line in lines
        if re.match(r" +tdb (?!.*--help)", line)
    ]
    assert len(examples) > 15
    for example in examples:
        rest = "--prompt p --target t" + (" --baseline b" if example.startswith("tdb edges") else "")
        words = shlex.split(example.replace("--prompt ...", "--prompt p").replace("...", rest))
        assert parse(words[1:]).run


def test_the_version_is_told(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert re.fullmatch(r"tdb \d+\.\d+\.\d+, interface v1\n", capsys.readouterr().out)


def test_progress_is_shown_on_terminals_only(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, fake: Fake
) -> None:
    with shown_progress(1):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    assert main(["info", "--server", fake[0]]) == 0
    assert "asking" not in capsys.readouterr().err  # too quick to be worth a bar
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", -1.0)
    assert main(["info", "--server", fake[0]]) == 0
    assert "asking about the model" in capsys.readouterr().err
    assert main([*DEBUG, "--server", fake[0]]) == 0
    out, err = capsys.readouterr()
    assert "waiting for the server" in err
    assert "waiting" not in out


def test_tokens_that_the_terminal_cannot_show_are_escaped(fake: Fake) -> None:
    script = "import sys; from tdb_client.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", script, *DEBUG, "--server", fake[0]]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert b"L1 head 2, ' to' \\u2192 ' Mary'" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error(fake: Fake) -> None:
    script = "import sys; from tdb_client.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, *DEBUG, "--json", "--server", fake[0]]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        (["--target", "Mary"], ["--target 'Mary': with a space in front, ' Mary' is another token, and the"]),
        (["--target", " Mary"], []),
        (
            ["--target", " Mary", "--distractor", "John"],
            ["--distractor 'John': with a space in front"],
        ),
        (["--target", "Mary", " Mary"], []),  # both on purpose
        (["--target", "Paris"], []),  # unlikely either way
    ],
)
def test_a_forgotten_space_is_a_warning(
    fake: Fake, capsys: Output, words: list[str], warnings: list[str]
) -> None:
    assert main(["debug", "--prompt", "p", *words, "--server", fake[0]]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warnings)
    for line, warning in zip(lines, warnings, strict=True):
        assert line.startswith(f"tdb: warning: {warning}")


def test_embeddings_are_called_so(fake: Fake, capsys: Output) -> None:
    assert main([*DEBUG, "--csv", "--server", fake[0]]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (rows[0]["node"], rows[0]["type"], rows[1]["type"]) == (
        "embedding @ 1",
        "embedding",
        "attention_head",
    )
    assert main([*DEBUG, "--json", "--server", fake[0]]) == 0
    nodes = json.loads(capsys.readouterr().out)["sub_requests"][0]["result"]["nodes"]
    assert nodes[0]["type"] == "embedding"


def test_sums_per_token_have_their_unit(fake: Fake, capsys: Output) -> None:
    head_trace = ["trace", "L1 head 2 @ 3 -> 1", "--prompt", "p", "--target", " Mary", "--type"]
    for arguments, unit in [
        (DEBUG, "logits"),
        ([*head_trace, "Q"], "attention score"),
        ([*head_trace, "V"], "logits"),
        ([*head_trace, "V", "--downstream", "L1 neuron 3 @ 3"], "activation"),
    ]:
        assert main([*arguments, "--server", fake[0]]) == 0
        assert f"strongest tokens, in {unit}: ' Mary' @ 1: +1.500" in capsys.readouterr().out

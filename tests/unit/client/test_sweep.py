"""`tdb sweep` with a service whose answers are written by hand: reading, going on, refusing, writing."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tdb_client.cli import main
from tdb_client.errors import InvalidValueError
from tdb_client.sweep.journal import FILE_NAME, open_journal
from tdb_client.sweep.lines import read_input
from tdb_client.sweep.means import Spread, table_of_nodes
from transformer_debugger.v1 import result_pb2
from transformer_debugger.v1.call_pb2 import PRIORITY_INTERACTIVE, PRIORITY_SWEEP

from tests.unit.client import fake_service
from tests.unit.client.fake_service import REFUSED, SLOW, TOO_LONG, FakeService

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]


def write(path: Path, *prompts: str, **more: object) -> Path:
    lines = [{"prompt": one, "target": " Mary", "distractor": [" John", 9], **more} for one in prompts]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def objectives(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "objectives.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def sweep(fake: Fake, tmp_path: Path) -> Any:
    """Runs `tdb sweep` on a file, into a folder."""

    def run(file: Path, *options: str, out: str = "out") -> int:
        return main(["sweep", str(file), "--out", str(tmp_path / out), *options, "--server", fake[0]])

    return run


def asked(service: FakeService) -> list[str]:
    """The prompts of the calls that were run."""
    calls = [one for one in service.requests if hasattr(one, "sub_requests") and not one.validate_only]
    return [one.prompt for call in calls for one in call.sub_requests]


def test_a_table_and_the_objectives(sweep: Any, fake: Fake, tmp_path: Path, capsys: Output) -> None:
    assert sweep(write(tmp_path / "in.jsonl", "a", "b", "c"), "-k", "3") == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "out"
    assert err == f"tdb: wrote {folder}/table.csv and {folder}/objectives.jsonl\n"
    assert "L1 head 2" in out
    assert "18 of 18 rows, means over 3 lines ± standard errors" in out
    rows = {row["component"]: row for row in table(folder)}
    heads = {f"L{layer} head {head}" for layer in range(2) for head in range(6)}
    listed = {"L0 neuron 5", "L1 attention latent 4", "L1 mlp latent 9"}
    assert rows.keys() == heads | listed | {"L0 mlp", "L1 mlp", "embedding"}
    assert table(folder)[0]["component"] == "L1 head 2"
    fields = "type", "layer", "index", "lines", "direct_effect", "act_times_grad", "write_norm", "activation"
    assert [rows["L1 head 2"][one] for one in fields] == ["head", "1", "2", "3", "4", "2", "8", ""]
    assert [rows["L0 mlp"][one] for one in fields[:5]] == ["mlp", "0", "", "3", "-0.5"]
    assert [rows["embedding"][one] for one in fields[:5]] == ["embedding", "", "", "3", "0.25"]
    assert [rows["L0 neuron 5"][one] for one in fields[:4]] == ["mlp_neuron", "0", "5", "3"]
    assert {row["direct_effect_standard_error"] for row in rows.values()} == {"0"}
    assert objectives(folder)[1] == {"line": 2, "id": "2", "n_tokens": 4, "objective": 3.0}
    calls = [one for one in fake[1].requests if hasattr(one, "sub_requests")]
    assert {one.priority for one in calls if not one.validate_only} == {PRIORITY_SWEEP}
    assert {one.sub_requests[0].top_and_bottom_k for one in calls} == {3}
    assert calls[0].sub_requests[0].distractor_token_ids == [9]
    validated = [one.validate_only for one in calls]
    assert validated == sorted(validated, reverse=True), "all lines are checked before any is run"


def test_one_prompt_has_means_without_standard_errors(sweep: Any, tmp_path: Path, capsys: Output) -> None:
    assert sweep(write(tmp_path / "in.jsonl", "a"), "-k", "3") == 0
    (row,) = (one for one in capsys.readouterr().out.splitlines() if "L1 head 2" in one)
    assert "4.000" in row
    assert "±" not in row
    assert "nan" not in row


def test_whoever_says_how_urgent_it_is_is_heard(sweep: Any, fake: Fake, tmp_path: Path) -> None:
    assert sweep(write(tmp_path / "in.jsonl", "a"), "--priority", "interactive") == 0
    calls = [one for one in fake[1].requests if hasattr(one, "sub_requests")]
    told = {one.priority for one in calls if not one.validate_only}
    assert told == {PRIORITY_INTERACTIVE}


def test_a_server_without_sums_is_too_old(
    sweep: Any, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = result_pb2.NamedResult(name="componentTotals")
    nothing.component_totals.SetInParent()
    monkeypatch.setattr(fake_service, "summed_components", lambda: nothing)
    assert sweep(write(tmp_path / "in.jsonl", "a")) == 1
    assert "the server gives no sums by component" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "p"}', "line 3, target: is missing"),
        ('{"target": "t"}', "line 3, prompt: is missing"),
        ('{"prompt": ["p"], "target": "t"}', 'line 3, prompt: ["p"] is no text'),
        ('{"prompt": "p", "target": []}', "line 3, target: has no token"),
        ('{"prompt": "p", "target": ["t", 1.5]}', "line 3, target[1]: 1.5 is neither the text of a token"),
        ('{"prompt": "p", "target": true}', "line 3, target: true is neither"),
        ('{"prompt": "p", "target": "t", "distractor": [-1]}', "line 3, distractor[0]: -1 is no vocabulary"),
        ('{"prompt": "p", "target": "t", "distractor": null}', "line 3, distractor: null is neither"),
        ('{"prompt": "p", "target": "t", "id": {}}', "line 3, id: {} is no text"),
        ('{"prompt": "p", "target": "t", "id": 1}', "line 3, id: '1' is that of line 1 as well"),
        (
            '{"prompt": "p", "target": "t", "baselin": "q"}',
            "line 3, 'baselin': there is no such field; a line",
        ),
        (
            '{"prompt": "p", "prompt": "q", "target": "t"}',
            "line 3: is no JSON object: a field stands there twice",
        ),
        ('{"prompt": "p\\ud800", "target": "t"}', "line 3, prompt: character 1, '\\ud800', is half of a"),
        ('["p", "t"]', "line 3: is no JSON object"),
        ('{"prompt": "p", "target": "t"', "line 3: is no JSON object: Expecting"),
        ("[" * 100_000, "line 3: is no JSON object"),
    ],
)
def test_malformed_lines_are_named_before_anything_is_asked(
    sweep: Any, fake: Fake, tmp_path: Path, capsys: Output, line: str, said: str
) -> None:
    file = write(tmp_path / "in.jsonl", "a")
    file.write_text(file.read_text() + "\n" + line + "\n", encoding="utf-8")
    assert sweep(file) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"tdb: {said}")
    assert err.count("\n") == 1
    assert not fake[1].requests
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--baseline", "q"], ["--only-these", "L0 mlp"], ["--node-types", "whole_mlp"]]
)
def test_what_a_sweep_would_pass_over_is_refused(
    sweep: Any, fake: Fake, tmp_path: Path, capsys: Output, option: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sweep(write(tmp_path / "in.jsonl", "a"), *option)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {' '.join(option)}" in capsys.readouterr().err
    assert asked(fake[1]) == []


def test_files_that_cannot_be_read(sweep: Any, tmp_path: Path, capsys: Output) -> None:
    assert sweep(tmp_path / "none.jsonl") == 1
    assert capsys.readouterr().err == f"tdb: cannot read {tmp_path}/none.jsonl: No such file or directory\n"
    (tmp_path / "in.jsonl").write_bytes(b"\n \n")
    assert sweep(tmp_path / "in.jsonl") == 1
    assert capsys.readouterr().err == f"tdb: {tmp_path}/in.jsonl: has no line\n"
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "\xff", "target": "t"}')
    assert sweep(tmp_path / "in.jsonl") == 1
    assert "line 1: is no JSON object: 'utf-8' codec can't decode" in capsys.readouterr().err


def test_lines_are_read_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    text = '\ufeff{"prompt": "p\u2028q", "target": 5, "id": 7}\r\n\n{"prompt": "r", "target": ["t", 6]}'
    file.write_text(text, encoding="utf-8", newline="")
    first, second = read_input(file).lines
    assert (first.number, first.name, second.number, second.name) == (1, "7", 3, "3")
    assert first.words == {"prompt": "p\u2028q", "target": (5,)}
    assert second.words == {"prompt": "r", "target": ("t", 6)}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [(REFUSED, "prompt: is a joke; line 2, target: is two"), (TOO_LONG, "prompt: is too long")],
)
def test_what_the_server_refuses_is_named_before_anything_is_run(
    sweep: Any, fake: Fake, tmp_path: Path, capsys: Output, prompt: str, said: str
) -> None:
    assert sweep(write(tmp_path / "in.jsonl", "a", prompt)) == 1
    assert capsys.readouterr().err.startswith(f"tdb: line 2, {said}")
    assert not asked(fake[1])
    assert sweep(write(tmp_path / "in.jsonl", "a")) == 0, (
        "nothing was done: the mended file may take its place"
    )


def test_nodes_that_do_not_fit_a_line(sweep: Any, fake: Fake, tmp_path: Path, capsys: Output) -> None:
    assert sweep(write(tmp_path / "in.jsonl", "a"), "--ablate-each", "L0 neuron 5 @ -9") == 1
    assert capsys.readouterr().err.startswith("tdb: line 1: L0 neuron 5 @ -9: token -9 does not exist in a")
    with pytest.raises(SystemExit):
        sweep(tmp_path / "in.jsonl", "--ablate-each", "L0 nron 5 @ -9")


def test_each_node_ablated_in_each_line(sweep: Any, fake: Fake, tmp_path: Path, capsys: Output) -> None:
    nodes = ["L1 head 2 @ -1", "L0 neuron 5 @ 2 = 2.5"]
    fake[1].max_sub_requests = 2  # more calls than lines
    assert sweep(write(tmp_path / "in.jsonl", "a", "b"), "--ablate-each", *nodes) == 0
    first, second = table(tmp_path / "out")
    assert first["node"], second["node"] == nodes
    assert (first["lines"], first["objective"], first["ablated"]) == ("2", "3", "2.46875")
    assert (first["change"], first["change_standard_error"]) == ("-0.53125", "0")
    assert second["change"] == "-3.078125"
    ablated = dict(zip(nodes, [2.46875, -0.078125], strict=True))
    assert objectives(tmp_path / "out")[0] == {
        "line": 1, "id": "1", "n_tokens": 4, "objective": 3.0, "ablated": ablated
    }  # fmt: skip


def test_no_more_calls_at_a_time_than_are_allowed(sweep: Any, fake: Fake, tmp_path: Path) -> None:
    fake[1].max_sub_requests, fake[1].max_concurrent_calls, fake[1].seconds = 2, 3, 0.02
    file = write(tmp_path / "in.jsonl", *"abcdef")
    assert sweep(file, "--ablate-each", *["L0 neuron 5 @ 2"] * 4) == 0  # three calls for each line
    assert 1 < fake[1].most_open <= 3


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_sweep_that_was_cut_off_goes_on(
    sweep: Any, fake: Fake, tmp_path: Path, capsys: Output, sent: signal.Signals, code: int
) -> None:
    server, service = fake
    file, folder = write(tmp_path / "in.jsonl", "a", SLOW, "c", "d"), tmp_path / "out"
    script = "import sys; from tdb_command import main; sys.exit(main())"
    words = [sys.executable, "-c", script, "sweep", str(file), "--out", str(folder), "--server", server]
    done = folder / FILE_NAME
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not (done.exists() and done.read_bytes().count(b"\n") == 4) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sweep(file) == 1
        assert f"--out: another sweep is writing to {folder}" in capsys.readouterr().err
        process.send_signal(sent)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == code
    assert not (folder / "table.csv").exists()
    with done.open("ab") as journal:
        journal.write(b'{"line": 2, "id": "2", "n_tok')  # as if it had been writing
    service.is_slow = False
    service.requests.clear()
    assert sweep(file) == 0
    assert asked(service) == [SLOW]
    assert "tdb: 3 of 4 lines are done; going on\n" in capsys.readouterr().err
    service.requests.clear()
    assert sweep(file, "--by", "node") == 0  # all is done: the table alone is made anew
    assert not asked(service)
    assert table(folder)[0]["node"] == "L1 head 2 @ 3 -> 1"
    assert sweep(file) == 0
    assert sweep(file, out="whole") == 0
    for name in ("table.csv", "objectives.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_has_changed_is_refused(sweep: Any, fake: Fake, tmp_path: Path, capsys: Output) -> None:
    file = write(tmp_path / "in.jsonl", "a", "b")
    assert sweep(file) == 0
    capsys.readouterr()
    assert sweep(file, "-k", "5") == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"tdb: --out: {tmp_path}/out holds a sweep of another k (10, now 5); choose another"
    )
    fake[1].digest = "beef"
    assert sweep(file) == 1
    assert 'of another model digest ("00ff", now "beef")' in capsys.readouterr().err
    assert sweep(file, out="new") == 1
    assert "the server holds another model by now: tiny, digest 00ff" in capsys.readouterr().err
    fake[1].digest = "00ff"
    write(file, "a", "b", "c")
    assert sweep(file) == 1
    assert 'of another input ("' in capsys.readouterr().err
    for strange in (b"x\n", b'{"line": 1, "n_tokens": 4}\n', b"x"):
        (tmp_path / "out" / FILE_NAME).write_bytes(strange)
        assert sweep(file) == 1
        assert f"{tmp_path}/out/{FILE_NAME}: is no record of a sweep" in capsys.readouterr().err
        assert (tmp_path / "out" / FILE_NAME).read_bytes() == strange


def test_a_journal_holds_lines_in_the_order_of_the_input(tmp_path: Path) -> None:
    heading: dict[str, object] = {"input": "x"}
    with open_journal(tmp_path, heading) as journal:
        for number in (3, 1, 2):
            journal.add(number, {"n_tokens": number, "text": "ä" * number})
        assert [one["line"] for one in journal.records()] == [1, 2, 3]
        journal.add(9, {"n_tokens": 9})
    content = (tmp_path / FILE_NAME).read_bytes()
    for n_bytes in range(len(content) + 1):  # wherever it was cut off
        (tmp_path / FILE_NAME).write_bytes(content[:n_bytes])
        with open_journal(tmp_path, heading) as journal:
            n_whole = content[:n_bytes].count(b"\n") - 1
            assert list(journal.n_tokens) == [3, 1, 2, 9][: max(n_whole, 0)]
            assert len(list(journal.records())) == max(n_whole, 0)
    lines = content.splitlines(keepends=True)
    (tmp_path / FILE_NAME).write_bytes(lines[0] + b"{}\n" + lines[2])
    with (
        pytest.raises(InvalidValueError, match="line 2 is no record of a sweep"),
        open_journal(tmp_path, heading),
    ):
        pass


def test_a_busy_server_is_asked_again(sweep: Any, fake: Fake, tmp_path: Path) -> None:
    fake[1].n_busy = 5
    assert sweep(write(tmp_path / "in.jsonl", "a", "b")) == 0
    assert len(table(tmp_path / "out")) == 18


def test_tables_by_node_need_one_length(sweep: Any, fake: Fake, tmp_path: Path, capsys: Output) -> None:
    fake[1].n_tokens = {"b": 5}
    file = write(tmp_path / "in.jsonl", "a", "b")
    assert sweep(file, "--by", "node") == 1
    said = "tdb: --by node: needs prompts of one length, and line 1 has 4 tokens, line 2 5\n"
    assert capsys.readouterr().err == said
    assert not asked(fake[1])
    assert sweep(file) == 0
    with pytest.raises(SystemExit):
        sweep(file, "--by", "node", "--ablate-each", "L0 neuron 5 @ 2")


def test_prompts_of_one_length_are_neighbours(
    sweep: Any, fake: Fake, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tdb_client.sweep.running.N_IN_FLIGHT", 1)
    fake[1].n_tokens = {"b": 5, "d": 5, "c": 3}
    assert sweep(write(tmp_path / "in.jsonl", "a", "b", "c", "d", "e")) == 0
    assert asked(fake[1]) == ["c", "a", "e", "b", "d"]
    assert [one["id"] for one in objectives(tmp_path / "out")] == ["1", "2", "3", "4", "5"]


def test_parquet(sweep: Any, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = write(tmp_path / "in.jsonl", "a")
    assert sweep(file, "--parquet") == 0
    read = parquet.read_table(tmp_path / "out" / "table.parquet").to_pydict()
    assert read["component"][0] == "L1 head 2"
    assert (read["layer"][:2], read["index"][:2]) == ([1, 0], [2, None])
    assert None in read["layer"]  # of the embedding
    assert read["direct_effect"][:2] == [4.0, -0.5]
    assert np.isnan(read["activation"][0])
    assert np.isnan(read["direct_effect_standard_error"][0])  # of one line
    assert sweep(file) == 0
    assert table(tmp_path / "out")[0]["direct_effect_standard_error"] == ""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    capsys.readouterr()
    assert sweep(file, "--parquet") == 1
    said = "tdb: Parquet needs pyarrow: pip install 'transformer-debugger-client[parquet]'\n"
    assert capsys.readouterr().err == said


def test_one_warning_where_numbers_count_the_first_token(
    sweep: Any, fake: Fake, tmp_path: Path, capsys: Output
) -> None:
    fake[1].adds_bos = True
    file = write(tmp_path / "in.jsonl", "a", "b", "c")
    assert sweep(file, "--ablate-each", "L1 head 2 @ -1 -> 0") == 0
    err = capsys.readouterr().err
    assert err.count("tdb: warning") == 1
    assert "puts '<s>' in front of prompts, and numbers of tokens, as in L1 head 2 @ -1 -> 0, count it" in err
    asked_for = [one for one in fake[1].requests if hasattr(one, "sub_requests")]
    assert all(one.sub_requests[0].inference_spec.add_bos for one in asked_for)
    assert sweep(file, "--ablate-each", "L1 head 2 @ -1", out="quiet") == 0
    assert "tdb: warning" not in capsys.readouterr().err


def test_means_are_over_all_lines() -> None:
    """A component that a line does not list counts as 0; the tokens of one line are summed before."""
    values = np.array([[1.5, -2.0], [0.25, 0.0], [0.0, 0.0], [4.0, 1e8]])
    spreads = [Spread(), Spread()]
    for row in values:
        for spread, value in zip(spreads, row, strict=True):
            if value:
                spread.add(float(value))
    for spread, column in zip(spreads, values.T, strict=True):
        whole = spread.with_zeros(len(column))
        assert whole.mean == pytest.approx(column.mean(), rel=1e-12)
        assert whole.standard_error == pytest.approx(column.std(ddof=1) / 2, rel=1e-12)

    def record(**effects: float) -> dict[str, Any]:
        nodes = {"a": "L1 head 2 @ 3 -> 1", "b": "L1 head 2 @ 3 -> 0", "c": "L0 neuron 5 @ 2"}
        scalars = ("act_times_grad", "write_norm", "activation")
        sums = [sum(effects.values()) + 1, 0.5, 0.0]  # more than what is listed
        components = {"names": ["L1 head 2", "L0 post_mlp latents", "embedding"], "direct_effect": sums}
        components |= {"act_times_grad": [2.0] * 3, "write_norm": [3.0] * 3}
        listed = {"nodes": [nodes[one] for one in effects], "direct_effect": list(effects.values())}
        return listed | {name: [1.0] * len(effects) for name in scalars} | {"components": components}

    columns = table_of_nodes([record(a=1.0, b=2.0, c=5.0), record(a=4.0)], "component")
    assert columns["component"] == ["L1 head 2", "L0 neuron 5", "L0 post_mlp latents", "embedding"]
    assert columns["type"] == ["head", "mlp_neuron", "post_mlp latents", "embedding"]
    assert columns["lines"] == [2, 1, 2, 2]
    assert columns["direct_effect"] == [7.0, 2.5, 0.5, 0.0]
    assert columns["direct_effect_standard_error"] == [2.0, 2.5, 0.0, 0.0]
    assert columns["write_norm"] == [3.0, 0.5, 3.0, 3.0]
    np.testing.assert_equal(columns["activation"], [np.nan, 0.5, np.nan, np.nan])
    by_node = table_of_nodes([record(a=1.0, b=2.0, c=5.0), record(a=4.0)], "node")
    assert by_node["node"] == ["L0 neuron 5 @ 2", "L1 head 2 @ 3 -> 1", "L1 head 2 @ 3 -> 0"]
    assert by_node["attended_to"] == [None, 1, 0]

"""Baselines, values of ablations, and circuits: how they are spelled, sent, answered and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_client import (
    Ablation,
    AblationSpec,
    ActivationIndex,
    Circuit,
    CircuitNode,
    Client,
    DebugSubRequest,
    InferenceSubRequest,
    InvalidValueError,
    Loss,
    NodeError,
    OlderServerError,
    head,
    whole_head,
    whole_mlp,
)
from tdb_client.attention import attention_requests
from tdb_client.cli import main
from tdb_client.encoding import debug_request, infer_request
from tdb_client.report.page import page
from tdb_client.report.request_text import command, program
from transformer_debugger.v1.ablation_pb2 import AblationValueType
from transformer_debugger.v1.node_pb2 import NODE_TYPE_WHOLE_HEAD, NODE_TYPE_WHOLE_MLP

from tests.unit.client.fake_service import TOKENS, WEIGHTS, FakeService, debug_results

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]
ASK = ["--prompt", "When Mary gave to", "--target", " Mary", "--distractor", " John"]


@pytest.mark.parametrize(
    ("text", "ablation"),
    [
        ("L9 head 6 @ -1 = baseline", Ablation(head(9, 6, token=-1), value_type="baseline")),
        ("L9 head 6 @ 3 -> 1 * 0.5", Ablation(head(9, 6, token=3, attended_to=1), 0.5, "scale")),
        ("L9 whole head 6 @ -1 + 2", Ablation(whole_head(9, 6, token=-1), 2, "add")),
        ("L5 mlp @ -1 + -2.5", Ablation(whole_mlp(5, token=-1), -2.5, "add")),
        ("L5 mlp @ 2 * 0", Ablation(whole_mlp(5, token=2), 0, "scale")),
    ],
)
def test_values_are_read_as_they_are_spelled(text: str, ablation: Ablation) -> None:
    assert Ablation.parse(text) == ablation
    assert str(ablation) == text


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["number", "scale", "add"]))
def test_every_value_survives_its_spelling(value: float, value_type: str) -> None:
    ablation = Ablation(whole_mlp(5, token=2), value, value_type)  # type: ignore[arg-type]
    assert Ablation.parse(str(ablation)) == ablation


@pytest.mark.parametrize(
    "text",
    ["L5 mlp @ 2 = base", "L5 mlp @ 2 * baseline", "L5 mlp @ 2 +", "L5 mlp @ 2 = 1 + 2", "L5 mlp 3 @ 2"],
)
def test_values_that_are_none(text: str) -> None:
    with pytest.raises(NodeError):
        Ablation.parse(text)


def test_a_number_and_the_baselines_are_not_one_value() -> None:
    with pytest.raises(NodeError, match="as well"):
        Ablation(whole_mlp(5, token=2), 1.0, "baseline")


def test_circuits_are_read_as_they_are_spelled() -> None:
    for text in ("L9 whole head 6", "L9 whole head 6 @ -1", "L5 mlp", "L5 mlp @ 0", "L5 neuron 9"):
        assert str(CircuitNode.parse(text)) == text
    for text in ("L9 head 6 @ 3 -> 1", "embedding @ 3", "L5", "gradient of L5 mlp @ 1"):
        with pytest.raises(NodeError):
            CircuitNode.parse(text)


def test_what_is_sent() -> None:
    asked = DebugSubRequest.of(
        "p",
        " Mary",
        baseline="q",
        ablate=["L1 head 2 @ 3 = baseline", "L1 mlp @ 3 * 0.5", "L0 mlp @ 3 = 2"],
        only_these=["L1 mlp", whole_head(0, 2, token=3)],
        mlp="whole_mlp",
        attention="whole_head",
    )
    (sent,) = debug_request([asked]).sub_requests
    assert sent.baseline_prompts == ["q"]
    kinds = [AblationValueType.Name(one.value_type).rpartition("_")[2] for one in sent.node_ablations]
    assert kinds == ["BASELINE", "SCALE", "UNSPECIFIED"]
    assert sent.only_these.node_types == [NODE_TYPE_WHOLE_HEAD, NODE_TYPE_WHOLE_MLP]
    mlp, of_head = sent.only_these.nodes
    assert (mlp.layer_index, mlp.HasField("token_index")) == (1, False)
    assert (of_head.component_index, of_head.token_index) == (2, 3)
    (plain,) = debug_request([DebugSubRequest.of("p", " Mary")]).sub_requests
    assert not plain.HasField("only_these")


def test_directions_are_arrays_or_lists() -> None:
    everywhere = ActivationIndex("resid_post_mlp", 1, (None, None))
    direction = np.array([1.0, -0.5], np.float32)
    spec = AblationSpec(everywhere, 4.0, "add", direction)
    assert spec == AblationSpec(everywhere, 4.0, "add", [1, -0.5])
    (sent,) = infer_request([InferenceSubRequest("p", ablate=(spec,))]).sub_requests
    assert sent.inference_spec.ablation_specs[0].direction == [1, -0.5]


def test_nodes_are_cells_where_the_general_request_sets_them() -> None:
    nodes = ["L1 head 2 @ 3 = baseline", "L1 whole head 2 @ 3", "L1 mlp @ 3 + 1", "L1 head 2 @ 3 -> 1 * 2"]
    (sent,) = infer_request([InferenceSubRequest.of("p", ablate=nodes)]).sub_requests
    cells = [
        [None if axis.HasField("all") else axis.index for axis in one.index.tensor_indices]
        for one in sent.inference_spec.ablation_specs
    ]
    assert cells == [[3, 2, None], [3, 2, None], [3, None], [3, 1, 2]]
    with pytest.raises(NodeError, match="attn_qk_probs"):
        infer_request([InferenceSubRequest.of("p", ablate="L1 head 2 @ 3 -> 1 = baseline")])


def test_answers_say_what_they_were_compared_with(fake: Fake) -> None:
    with Client(fake[0]) as client:
        result = client.debug("p", " Mary", baseline=["q", "r"], only_these=["L1 whole head 2 @ -1"])
    assert [one.tokens for one in result.baselines] == [tuple(TOKENS)] * 2
    assert result.circuit is not None
    assert result.circuit.faithfulness == WEIGHTS["L1 whole head 2"]
    sent = fake[1].requests[-1].sub_requests[0]
    assert sent.only_these.nodes[0].token_index == len(TOKENS) - 1
    (heads,) = attention_requests([result], 1)
    assert (heads.baseline, heads.only_these) == (("q", "r"), (CircuitNode("whole_head", 1, 2, 3),))
    other = replace(result, request=replace(result.request, target=(), loss=Loss("probs", " Mary")))
    assert [one.loss for one in attention_requests([other], 1)] == [Loss("probs", " Mary")]
    assert heads.loss is not None


@pytest.mark.parametrize(
    "words",
    [
        {"baseline": "q"},
        {"only_these": []},
        {"ablate": "L1 mlp @ 0 * 2"},
        {"ablate": "L1 mlp @ 0 = baseline"},
    ],
    ids=str,
)
def test_an_older_server_is_not_asked_what_it_would_skip(fake: Fake, words: dict[str, object]) -> None:
    fake[1].max_circuit_nodes = 0
    with Client(fake[0]) as client:
        with pytest.raises(OlderServerError, match=r"0\.1\.0"):
            client.debug("p", " Mary", **words)  # type: ignore[arg-type]
        assert not fake[1].requests
        client.debug("p", " Mary", ablate="L1 head 2 @ 0 = 2")


def test_a_newer_server_is_asked_once_for_what_it_knows(fake: Fake) -> None:
    with Client(fake[0]) as client:
        for _ in range(3):
            client.debug("p", " Mary", baseline="q")
    assert fake[1].n_model_infos == 1


def test_an_answer_that_skips_a_baseline_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a balancer leads to a server of another age."""
    monkeypatch.setattr("tests.unit.client.fake_service.tell_what_is_compared", lambda *_: None)
    with Client(fake[0]) as client, pytest.raises(OlderServerError, match="older server than was asked"):
        client.debug("p", " Mary", baseline="q")


def test_a_baseline_in_a_chat_is_said_by_the_user(fake: Fake) -> None:
    with Client(fake[0]) as client:
        client.debug("Hello", " Mary", baseline="Bye", chat=True)
        sent = fake[1].requests[-1].sub_requests[0]
        assert sent.prompt.replace("Hello", "Bye") == sent.baseline_prompts[0]
        with pytest.raises(InvalidValueError, match=r"baseline\[0\]"):
            client.debug("Hello", " Mary", baseline=[[{"role": "user", "content": "Bye"}]])


def test_tables_and_pages_say_that_numbers_are_differences(fake: Fake, capsys: Output) -> None:
    assert main(["debug", *ASK, "--baseline", "When John gave to", "--server", fake[0]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "baseline: " + "".join(TOKENS).strip() in out
    assert "Δ act × Δ direct" in out
    assert "of the difference from the baseline" in out
    assert main(["debug", *ASK, "--server", fake[0]]) == 0
    assert "Δ" not in capsys.readouterr().out
    asked = DebugSubRequest.of("p", " Mary", baseline="q", only_these=[])
    text = page(debug_results(asked))
    assert "of the difference from the baseline" in text
    assert '"baselines":["' in text
    assert "faithfulness 0.000" in text


def test_requests_are_told_as_they_were_asked(fake: Fake, capsys: Output) -> None:
    asked = DebugSubRequest.of(
        "p", " Mary", baseline=["q", "r"], only_these="L1 mlp", node_types=["whole_mlp"]
    )
    assert "--baseline q r --only-these 'L1 mlp' --node-types whole_mlp" in command(asked)
    assert "baseline=['q', 'r']" in program([asked])
    assert "only_these=['L1 mlp']" in program([asked])
    words = ["--baseline", "q", "--only-these", "--node-types", "whole_mlp", "--json"]
    assert main(["debug", *ASK, *words, "--server", fake[0]]) == 0
    (told,) = json.loads(capsys.readouterr().out)["sub_requests"]
    assert told["request"]["baseline"] == ["q"]
    assert told["request"]["only_these"] == []
    assert told["result"]["baselines"][0]["tokens"] == list(TOKENS)
    assert told["result"]["circuit"]["faithfulness"] == 0


def test_a_circuit_is_found(fake: Fake) -> None:
    with Client(fake[0]) as client:
        found = client.circuit("p", " Mary", " John", baseline="q", faithfulness=0.85)
    assert [str(one) for one in found.nodes] == ["L0 mlp", "L1 whole head 2", "L1 mlp"]
    assert (found.faithfulness, len(found), found.n_components) == (0.875, 3, 14)
    assert found.is_faithful
    assert [len(one) for one in found.path] == sorted({len(one) for one in found.path})
    assert found.path[-1].faithfulness == pytest.approx(1)
    assert Circuit.from_json(found.to_json()) == found
    (sent,) = debug_request([found.sub_request()]).sub_requests
    assert len(sent.only_these.nodes) == 3


def test_a_search_ends_when_calls_do(fake: Fake) -> None:
    with Client(fake[0]) as client:
        found = client.circuit("p", " Mary", baseline="q", max_calls=1)
        assert 0 < found.n_measured <= 8
        assert sum(bool(one.sub_requests[0].HasField("inference_spec")) for one in fake[1].requests) == 4
        for words in ({"faithfulness": 1.5}, {"max_calls": 0}, {"rank_by": "size"}):
            with pytest.raises(InvalidValueError, match=next(iter(words))):
                client.circuit("p", " Mary", **words)  # type: ignore[arg-type]


def test_files_that_hold_no_circuit(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"format": "transformer-debugger circuit 1"}'):
        (tmp_path / "circuit.json").write_text(text)
        with pytest.raises(InvalidValueError, match="circuit"):
            Circuit.load(tmp_path / "circuit.json")


def test_the_command_prints_and_writes_a_circuit(fake: Fake, tmp_path: Path, capsys: Output) -> None:
    html, kept = tmp_path / "c.html", tmp_path / "c.json"
    files = ["--html", str(html), "--json", str(kept)]
    evil = "When <script>\x1b[31m gave to"
    assert main(["circuit", *ASK, "--baseline", evil, *files, "--server", fake[0]]) == 0
    out, err = capsys.readouterr()
    assert "faithfulness 0.875 with 3 of 14 heads and MLPs (21.4%)" in out
    assert out.index("L0 mlp") < out.index("L1 whole head 2") < out.index("L1 mlp")
    assert "\x1b" not in out
    assert "3 <         0.875  ###################################....." in out
    assert out.replace("·", "").isascii()
    assert err.count("wrote") == 2
    assert Circuit.load(kept).baseline == (evil,)
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<polyline" in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(SystemExit) as ended:
        main(["circuit", "--prompt", "p", "--server", fake[0]])
    assert ended.value.code == 2
    assert main(["circuit", *ASK, "--html", str(tmp_path / "no" / "x"), "--server", fake[0]]) == 1

from __future__ import annotations

import html
import json
import re
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tdb_client import Ablation, DebugResult, DebugSubRequest, Loss, LossTokens, Node
from tdb_client.report import page as page_module
from tdb_client.report.data import report_data
from tdb_client.report.notebook import frame
from tdb_client.report.page import SCRIPTS, page
from tdb_client.report.rounding import rounded, rounded_rows
from tdb_client.report.token_sums import MAX_PAIR_TOKENS, pair_sums, shown_pair_tokens, token_sums

from tests.unit.client.fake_service import NODES, debug_results

EVIL = "</script><img src=x onerror=alert(1)>\u202e&lt;<!--"


def one_result() -> DebugResult:
    return debug_results(DebugSubRequest.of("p", " Mary", " John"))[0]


def before_and_after() -> list[DebugResult]:
    plain = DebugSubRequest.of("p", " Mary", " John")
    return debug_results(plain, DebugSubRequest.of("p", " Mary", " John", ablate="L1 head 2 @ -1"))


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_data_have_what_is_drawn() -> None:
    data = report_data([one_result()])
    (run,) = data["runs"]
    assert data["objective"] == "logit ' Mary' - ' John'"
    assert run["value"] == 3.0
    assert [one["quoted"] for one in data["tokens"]] == ["'When'", "' Mary'", "' gave'", "' to'"]
    assert run["attribution"] == [0.0, 1.5, -0.5, None]  # from nan
    assert [Node.parse(one["spelling"]) for one in data["nodes"]] == [Node.parse(one) for one in NODES]
    assert run["scalars"]["direct_effect"] == [0.0, 4.0, -0.5, 1e-5, 0.25]
    assert run["tokens"][1]["writes"][0][0] == ["' Mary'", 4.0]
    assert run["tokens"][1]["input"] is None
    assert run["tokens"][4]["attended_to"] == [[1, 2.5], [0, -0.5]]
    assert data["logits"][0] == {"token": "' Mary'", "role": "target"}
    assert data["logits"][-1] == {"token": "' John'", "role": "distractor"}
    assert run["logits"] == [11.0, 9.5, 8.0]


@pytest.mark.parametrize("digits", [4, 5])
def test_numbers_are_rounded_as_text_would_be(digits: int) -> None:
    random = np.random.default_rng(0)
    numbers = random.standard_normal(4000) * 10.0 ** random.integers(-12, 12, 4000)
    numbers = np.concatenate([numbers, 10.0 ** np.arange(-12, 12), [0.0, -99999.6, 0.999996, np.nan]])
    found = rounded(numbers.astype(np.float32), digits)
    in_words = [f"{float(one):.{digits}g}" for one in numbers.astype(np.float32)]
    assert found[:-1] == [float(one) for one in in_words[:-1]]
    assert found[-1] is None


def test_numbers_of_all_sizes_are_rounded() -> None:
    """As far as doubles go, where powers of ten are not exact and those below 1 end."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal(2000) * 10.0 ** random.integers(-300, 300, 2000)
    numbers = np.concatenate([numbers, [5e-324, 1e-310, 1e22, 1e23, -1e-23, 9.9999e307, -0.0]])
    assert rounded(numbers, 4) == [float(f"{one:.4g}") for one in numbers]
    assert str(rounded(numbers, 4)[-1]) == "-0.0"
    largest = float(np.finfo(np.float64).max)
    assert rounded(np.array([largest, -largest]), 4) == [largest, -largest]  # not infinite, as 1.798e308 is


def test_rows_are_rounded_as_one_by_one() -> None:
    rows = [np.array(one, np.float32) for one in ([1.23456789, np.inf], [], [-1e-9], [7.0, 0.1, 12345678.0])]
    assert rounded_rows(rows, 3) == [rounded(one, 3) for one in rows]
    assert rounded_rows([], 3) == []


def test_sums_are_those_of_the_answer() -> None:
    result = one_result()
    heads = np.arange(16.0).reshape(4, 4)
    sums = token_sums(result, "act_times_grad")
    np.testing.assert_array_equal(sums["heads_from"], heads.sum(axis=1))
    np.testing.assert_array_equal(sums["heads_to"], heads.sum(axis=0))
    np.testing.assert_array_equal(sums["embedding"], result.token_attribution)
    pairs = pair_sums(result, "act_times_grad", [1, 3])
    assert [list(row) for row in pairs] == [[5.0], [13.0, 15.0]]  # up to the attending token
    assert token_sums(result, "write_norm") == {}  # the fake answer has none
    assert pair_sums(result, "write_norm", [0]) == []


def test_long_prompts_show_the_tokens_that_matter() -> None:
    n_tokens = MAX_PAIR_TOKENS + 20
    heads = np.zeros((n_tokens, n_tokens))
    heads[n_tokens - 1, 7] = 3.0
    result = SimpleNamespace(
        prompt=range(n_tokens),
        sums={"direction_write": {"unflattened_attn_write_to_final_residual_grad": heads}},
    )
    tokens = shown_pair_tokens([result])  # type: ignore[list-item]
    assert len(tokens) == MAX_PAIR_TOKENS
    assert tokens == sorted(tokens)
    assert {7, n_tokens - 1} <= set(tokens)


def test_two_results_are_compared_node_by_node() -> None:
    before, after = before_and_after()
    data = report_data([before, after])
    assert data["ablations"] == ["L1 head 2 @ -1 (whole row)"]
    first, second = data["runs"]
    assert (first["value"], second["value"]) == (3.0, 2.5)
    assert (first["scalars"]["direct_effect"][1], second["scalars"]["direct_effect"][1]) == (4.0, 3.5)
    assert data["request"]["command"].endswith("--ablate 'L1 head 2 @ -1'")
    assert len(json.loads(data["request"]["message"])["subRequests"]) == 2


def test_changes_of_large_numbers_have_the_digits_that_are_shown() -> None:
    before, after = before_and_after()
    for one, logit in ((before, -102.4312), (after, -102.4178)):
        one.logits.logits[:] = logit
    first, second = report_data([before, after])["runs"]
    assert f"{second['logits'][0] - first['logits'][0]:.3f}" == "0.013"


def test_nodes_of_one_result_alone_are_unknown_in_the_other() -> None:
    before, after = before_and_after()
    nodes = after.nodes
    fewer = type(nodes)(*(getattr(nodes, name)[1:] for name in nodes.__dataclass_fields__))
    changed = DebugResult(
        **{name: getattr(after, name) for name in after.__dataclass_fields__} | {"nodes": fewer}
    )
    data = report_data([before, changed])
    assert len(data["nodes"]) == len(before.nodes)
    assert data["runs"][1]["scalars"]["direct_effect"][0] is None
    assert data["runs"][1]["tokens"][0] is None


def test_other_prompts_cannot_be_compared() -> None:
    before, after = before_and_after()
    other = type(after.prompt)(after.prompt.token_ids[1:], after.prompt.tokens[1:])
    changed = DebugResult(
        **{name: getattr(after, name) for name in after.__dataclass_fields__} | {"prompt": other}
    )
    with pytest.raises(ValueError, match="the same prompt"):
        before.to_html(before=changed)


def test_what_was_ablated_before_is_said() -> None:
    """Two ablations, or the ablated run first: the first value is not that of the run as it is."""
    before, after = before_and_after()
    other = replace(
        before, request=replace(before.request, ablate=(Ablation(Node.parse("L0 mlp @ 1"), 2.0),))
    )
    for results in ([other, after], [after, other]):
        data: Any = report_data(results)
        spelled = [data["ablations_before"], data["ablations"]]
        assert spelled == [
            ["L0 mlp @ 1 = 2"] if one is other else ["L1 head 2 @ -1 (whole row)"] for one in results
        ]
    assert report_data([before, after])["ablations_before"] == []


def test_other_objectives_and_baselines_cannot_be_compared() -> None:
    """The page has one title, and its differences would be of numbers that have nothing in common."""
    before, after = before_and_after()
    spelled = replace(
        before, request=DebugSubRequest("p", loss=Loss("logit_diff", " Mary", " John", token=-1))
    )
    assert report_data([spelled, after])["objective"] == after.objective
    others = [
        replace(before, loss_tokens=LossTokens((9,), (" the",))),
        replace(before, request=DebugSubRequest("p", loss=Loss("log_prob", " Mary"))),
        replace(before, request=DebugSubRequest("p", loss=Loss("logit_diff", " Mary", " John", token=0))),
        replace(before, request=DebugSubRequest.of("p", " Mary", " John", trace="L0 neuron 5 @ 1")),
    ]
    for other in others:
        with pytest.raises(ValueError, match="one objective"):
            after.to_html(before=other)
    with pytest.raises(ValueError, match="the same baselines"):
        after.to_html(before=replace(before, baselines=(before.prompt,)))


def test_the_page_is_whole_and_asks_nothing_of_the_network() -> None:
    text = one_result().to_html()
    assert text.startswith("<!doctype html>")
    assert "<title>Why &#x27; Mary&#x27; rather than &#x27; John&#x27;?</title>" in text
    assert "default-src 'none'" in text
    outside = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"https?:|//cdn|@import|url\(|<link|<img|fetch\(|XMLHttp", outside)
    assert "$" not in re.sub(r"<(script|style).*?</\1>", "", outside, flags=re.DOTALL)  # all is filled in


def test_the_policy_names_the_script_and_the_style_that_are_there() -> None:
    text = one_result().to_html()
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(script) == len(style) == 1
    for content in (*script, *style):
        assert f"'sha256-{page_module._digest(content)}'" in text


def test_texts_cannot_become_part_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.client.fake_service.TOKENS", ("When", EVIL, " gave", " to"))
    request = DebugSubRequest.of(f"p {EVIL}", [" Mary", EVIL], EVIL, ablate="L1 head 2 @ -1")
    (result,) = debug_results(request)
    text = result.to_html()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "<!--" not in text
    assert "\u202e" not in text  # would turn the text around
    data = data_of(text)
    assert data["tokens"][1]["quoted"] == repr(EVIL)
    assert EVIL in json.loads(data["request"]["message"])["subRequests"][0]["prompt"]
    framed = frame(text)
    assert framed.count("<") == framed.count(">") == 2
    assert html.unescape(framed.partition('srcdoc="')[2].partition('" title=')[0]) == text


def test_the_script_only_ever_makes_texts() -> None:
    folder = Path(page_module.__file__).parent
    assert sorted(one.stem for one in folder.glob("*.js")) == sorted(SCRIPTS)
    for file in folder.glob("*.js"):
        source = file.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", source)
        assert "</" not in source


def test_results_show_themselves_in_notebooks() -> None:
    result = one_result()
    shown = result._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "allow-same-origin" not in shown  # the page can do nothing to the notebook
    assert repr(result) == "<DebugResult: logit ' Mary' - ' John' = 3.000, 5 nodes>"


def test_show_asks_the_notebook_or_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    result = one_result()
    result.show()
    file = Path(opened[0].removeprefix("file://"))
    assert file.read_text(encoding="utf-8") == result.to_html()
    file.unlink()

    displayed: list[str] = []
    output = SimpleNamespace(display=lambda shown, raw: displayed.append(shown["text/html"] if raw else ""))
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", output)
    before, after = before_and_after()
    after.show(before=before)
    assert displayed == [frame(page([before, after]))]
    assert len(opened) == 1


def test_traces_are_named_in_the_question() -> None:
    request = DebugSubRequest.of("p", trace="L1 head 2 @ -1 -> 1 through Q")
    (result,) = debug_results(request)
    assert "<h1>Why L1 head 2, &#x27; to&#x27; → &#x27; Mary&#x27;, through Q?</h1>" in result.to_html()
    assert result.objective_value == 2.75
    value = DebugSubRequest.of("p", " Mary", ablate=[Ablation(Node.parse("L0 neuron 5 @ 3"), 2.5)])
    assert "Why &#x27; Mary&#x27;?" in debug_results(value)[0].to_html()

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType
from tdb_client import DebugSubRequest
from tdb_client.cli import numbers, pages, prompt_line

from tests.unit.client.fake_service import debug_results

Page = Callable[[int], RenderableType]


def one(width: int) -> RenderableType:
    (result,) = debug_results(DebugSubRequest.of("p", " Mary", " John"))
    return pages.result_page(result, pages.View("direct_effect", 4, 2, width))


def two(width: int) -> RenderableType:
    plain = DebugSubRequest.of("p", " Mary", " John")
    ablated = DebugSubRequest.of("p", " Mary", " John", ablate=["L1 head 2 @ -1"])
    return pages.comparison_page(*debug_results(plain, ablated), pages.View("direct_effect", 0, 3, width))


def printed(page: Page, width: int, **how: object) -> str:
    console = Console(
        width=width, record=True, quiet=False, markup=False, emoji=False, highlight=False, **how
    )  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(page(width))
    return captured.get()


@pytest.mark.parametrize("page", [one, two])
@pytest.mark.parametrize("width", [80, 160])
def test_no_line_is_wider_than_the_terminal(page: Page, width: int) -> None:
    lines = printed(page, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any("L1 head 2, ' to' → ' Mary'" in line for line in lines)  # the longest node is whole


@pytest.mark.parametrize("width", [80, 160])
def test_a_result_has_everything(width: int) -> None:
    text = printed(one, width)
    head = next(line for line in text.splitlines() if line.startswith("L1 head 2"))
    assert head.split("' Mary'")[1].split() == ["3", "→", "1", "2.250", "3.500", "4.000", "0.875"]
    assert head.count("' Mary'") >= 2  # attended to, and upvoted
    assert "logit ' Mary' - ' John' = 3.000" in text
    assert "prompt: When Mary gave to" in text
    assert "' Mary' @ 1: +1.500, ' gave' @ 2: -0.500" in text
    assert "4 of 5 nodes, by direct effect; --rows 0 shows all" in text
    logits = text[text.index("top logits") :].splitlines()
    assert [line.split()[-1] for line in logits[2:4]] == ["11.00", "9.500"]


def test_wide_terminals_also_show_what_excites_nodes() -> None:
    assert "excited by" not in printed(one, 80)
    text = printed(one, 160)
    assert "q ' Mary' ' [bold]the'  k ' Mary'" in text  # a head's query and key
    assert "@ 1 +2.500 @ 0 -0.500" in text  # an attention latent's attended-to tokens


@pytest.mark.parametrize("width", [80, 160])
def test_a_comparison_shows_differences(width: int) -> None:
    text = printed(two, width)
    assert "ablated: L1 head 2 @ -1 (whole row)" in text
    assert "3.000 plain, 2.500 ablated, difference -0.500" in text
    head = next(line for line in text.splitlines() if line.startswith("L1 head 2, "))
    expected = ["4.000", "3.500", "-0.500"] + (["3.500", "3.500", "0"] if width == 160 else [])
    assert head.split("→ 1")[1].split()[: len(expected)] == expected
    assert "5 of 5 nodes, by difference in direct effect" in text
    mary = next(line for line in text.splitlines() if line.startswith("' Mary'"))
    assert mary.split()[2:] == ["11.00", "10.50", "-0.500"]


def test_a_traced_node_is_named_in_words() -> None:
    request = DebugSubRequest.of(
        "p", " Mary", trace="L1 head 2 @ -1 -> 1 through V", downstream="L1 neuron 3 @ -1"
    )
    (result,) = debug_results(request)
    text = printed(lambda width: pages.result_page(result, pages.View("activation", 1, 1, width)), 100)
    assert "L1 head 2, ' to' → ' Mary', through V, read by L1 neuron 3, ' to' = 2.750" in text


def test_deeper_colours_mean_more() -> None:
    line = prompt_line.coloured_prompt(["a", "b", "c", "d"], np.array([2.0, -1.0, 0.5, 0.01]))
    colours = [span.style.bgcolor.triplet for span in line.spans if span.style.bgcolor]  # type: ignore[union-attr]
    assert [tuple(colour) for colour in colours] == [(0, 135, 255), (255, 186, 108), (163, 212, 255)]


def test_colours_are_there_and_NO_COLOR_takes_them_away(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured_mary = re.compile("\x1b\\[[0-9;]*m Mary\x1b")
    assert coloured_mary.search(printed(one, 100, force_terminal=True, color_system="truecolor"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured_mary.search(printed(one, 100, force_terminal=True, color_system="truecolor"))


def test_tokens_are_never_markup() -> None:
    assert "' [bold]the'" in printed(one, 100)


def test_control_characters_do_not_reach_the_terminal() -> None:
    line = prompt_line.coloured_prompt(["a\x1b[2J", "\n", " é"], np.array([1.0, -1.0, 0.0]))
    assert line.plain == "a·[2J⏎ é"
    assert str(numbers.best_tokens(None, 3)) == ""


def test_prompts_without_attribution_have_no_colour() -> None:
    for values in (np.zeros(2), np.full(2, np.nan)):
        assert not any(span.style.bgcolor for span in prompt_line.coloured_prompt(["a", "b"], values).spans)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.23456, "1.235"),
        (-12.3456, "-12.35"),
        (123.456, "123.5"),
        (-98765.4, "-98765"),
        (1e6, "1.0e+06"),
        (-0.00012, "-1.2e-04"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert numbers.number(value) == text
    assert len(text) <= 8

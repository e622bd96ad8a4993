"""The tutorial's circuit found in the workbench by clicking alone, with the default model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.browser import CHROMIUM
from tests.integration.workbench_page import Workbench, workbench
from tests.running_server import RunningServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

PLAIN, WITHOUT_THE_STRONGEST = 6.12, 3.19
STRONGEST = "L23 head 3 @ 13 -> 9"
THIRTEEN = {2: [4], 5: [6], 8: [0, 1], 9: [2], 19: [2], 20: [0], 23: [0, 1, 3, 4, 5, 7]}
"""Heads of the circuit by layer: they see the repeated name, steer, and choose."""


@pytest.fixture(scope="module")
def bench(smollm2: RunningServer) -> Iterator[Workbench]:
    """The page with its own example, which is the tutorial's; each test goes on where the last has ended."""
    with workbench(f"http://127.0.0.1:{smollm2.http_port}/") as one:
        one.click("#baseline .remove")
        one.run()
        yield one
        assert one.page.complaints == []


def menu(bench: Workbench, opener: str, action: str) -> None:
    """Chooses from the menu that a button opens."""
    bench.click(opener)
    at = [one for one, text in enumerate(bench.texts("#menu button")) if text.startswith(action)]
    assert at, bench.texts("#menu button")
    bench.click("#menu button", at[0])


def test_the_strongest_node_stands_first_and_is_ablated(bench):
    assert bench.values() == pytest.approx([PLAIN], abs=0.05)
    assert bench.listed("head")[0] == STRONGEST
    menu(bench, f"{bench.row(STRONGEST)} button.do", "ablate")
    bench.answered()
    assert bench.values() == pytest.approx([PLAIN, WITHOUT_THE_STRONGEST, -2.93], abs=0.05)


def test_the_table_says_what_makes_up_for_it(bench):
    bench.write("#filter", "L24 head")
    gains = [float(one.replace("−", "-")) for one in bench.texts("#nodes tbody td:nth-child(5)")]
    assert max(gains) > 0.1
    bench.write("#filter", "")


def test_it_is_taken_back_and_its_query_is_traced(bench):
    bench.click("#all-back")
    bench.answered()
    assert bench.values() == pytest.approx([PLAIN], abs=0.05)
    bench.act(STRONGEST, "trace-Q")
    bench.answered()
    assert "through Q" in bench.text("#values span")
    assert bench.texts("#changes .chip code") == [f"trace {STRONGEST} through Q"]
    assert any("L20 head 0" in one for one in bench.texts("#nodes tbody th"))


def test_it_is_patched_from_the_exchanged_names(bench):
    bench.page.evaluate("history.back()")
    bench.wait("document.querySelectorAll('#changes .chip').length === 0")
    bench.act(STRONGEST, "patch")
    bench.page.type("When John and Mary went to the store, Mary gave a drink to")
    bench.run()
    assert bench.texts("#changes .chip code") == ["L23 head 3 @ 13 = baseline"]
    first, second, _ = bench.values()
    assert first == pytest.approx(PLAIN, abs=0.05)
    assert second < first - 3


def test_only_thirteen_heads_are_kept(bench):
    """Those that the table does not list are found in the picture of any head."""
    bench.click("#changes .chip button")
    bench.answered()
    bench.open_picture("head")
    for layer, heads in THIRTEEN.items():
        for head in heads:
            for field, value in (("layer", layer), ("index", head)):
                bench.page.evaluate(
                    f"document.getElementById('head-{field}').value = {value};"
                    f"document.getElementById('head-{field}').dispatchEvent(new Event('change'))"
                )
            name = f"L{layer} head {head}"
            bench.wait(
                "document.querySelector('.head-picture:not([aria-busy]) caption')?.textContent"
                f" === {name!r} && document.querySelector('.head-picture').ariaBusy === null"
            )
            menu(bench, ".head-picture .strongest button", "keep only")
    assert bench.count("#gathered .kept") == 13
    bench.click("#run-gathered")
    bench.answered()
    assert bench.text("#notes").count("whole head") >= 13
    assert "faithfulness" in bench.text("#notes")
    assert bench.values()[1] > 1  # thirteen heads of 270 still prefer Mary


def test_the_whole_way_stands_in_the_trail(bench):
    assert bench.count("#trail li") == 6  # the baseline made the plain question another one
    bench.click("#trail li button")
    bench.answered()
    assert bench.values() == pytest.approx([PLAIN], abs=0.05)

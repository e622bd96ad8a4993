"""The report page in a real browser, with answers of a real server: `tdb debug --html`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tdb_client import Client, DebugSubRequest
from tdb_client.cli import main
from tdb_client.report.notebook import frame

from tests.integration.browser import CHROMIUM, Page, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

PROMPT = "When Mary and John went to the store, John gave a drink to"
TARGET, DISTRACTOR = " the", " of"
EVIL = "</script><img src=x onerror=document.title=1>"
WHITE, BLUE, ORANGE = "255,255,255", "86,156,224", "243,151,66"
LAPTOP, NOTEBOOK, PHONE = (1366, 768), (960, 720), (420, 800)


@pytest.fixture(scope="module")
def report(server, tmp_path_factory) -> Path:
    """A page that compares a run with one with ablations."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    tokens = ["--target", TARGET, "--distractor", DISTRACTOR]
    command = ["debug", "--prompt", PROMPT, *tokens, "--ablate", "L1 head 1 @ -1", "--html", str(file)]
    assert main([*command, "--server", f"127.0.0.1:{server.port}"]) == 0
    return file


@pytest.fixture
def page(report) -> Iterator[Page]:
    with opened(report, *LAPTOP) as one:
        yield one


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
    )
    return found


def figures(page: Page, selector: str) -> list[float]:
    """Numbers as they are shown."""
    return [float(one.replace("−", "-")) for one in texts(page, selector)]


def click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def test_the_page_draws_itself_and_asks_nothing_of_the_network(page, report):
    assert page.complaints == []
    assert page.requests == [report.as_uri()]
    assert page.evaluate("document.title") == "Why ' the' rather than ' of'?"
    assert "".join(texts(page, "#prompt .word")) == PROMPT
    assert len(texts(page, "#nodes tbody tr")) == 20
    assert texts(page, "#values strong")[0] == "−7.702"
    assert 10 <= len(texts(page, "#logits th")) <= 20  # the likeliest of both runs
    assert len(texts(page, "#sums tbody tr")) == len(texts(page, "#attention tbody tr"))


def test_the_first_value_says_what_was_ablated(server, tmp_path):
    with Client(f"127.0.0.1:{server.port}") as client:
        plain, ablated = client.debug_many(
            [DebugSubRequest.of(PROMPT, TARGET, DISTRACTOR, ablate=one) for one in ((), "L1 head 1 @ -1")]
        )
    objective, ablation = "logit ' the' - ' of'", "with L1 head 1 @ -1 (whole row) ablated"
    for text, titles in [
        (ablated.to_html(), [f"{objective} {ablation}"]),
        (plain.to_html(before=ablated), [f"{objective} {ablation}", "with nothing ablated", "change"]),
        (ablated.to_html(before=plain), [objective, ablation, "change"]),
    ]:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        with opened(file, *LAPTOP) as page:
            assert texts(page, "#values span") == titles


@pytest.mark.parametrize("size", [LAPTOP, NOTEBOOK, PHONE])
def test_nothing_runs_over_the_edge(report, size):
    with opened(report, *size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_the_picture_has_the_colours_of_the_numbers(page, tmp_path):
    runs = page.evaluate("JSON.parse(document.getElementById('data').textContent).runs")
    change = np.subtract(runs[1]["attribution"], runs[0]["attribution"])
    deepest = int(np.argmax(np.abs(change)))
    box = page.evaluate(f"document.querySelectorAll('.word')[{deepest}].getBoundingClientRect().toJSON()")
    picture = page.picture(tmp_path / "report.png", at=(box["x"] + 3, box["y"] + 3))
    assert picture.width == LAPTOP[0]
    assert picture.height > 2 * LAPTOP[1]
    assert picture.colours[WHITE] / (picture.width * picture.height) > 0.8  # dark on white
    assert picture.colours[BLUE] > 100
    assert picture.colours[ORANGE] > 100
    assert picture.colour_at == (BLUE if change[deepest] > 0 else ORANGE)


def test_headings_sort_and_words_filter(page):
    by_size = [abs(one) for one in figures(page, "#nodes tbody td:nth-child(5)")]
    assert by_size == sorted(by_size, reverse=True)
    click(page, "[data-column=change]")
    falling = figures(page, "#nodes tbody td:nth-child(5)")
    assert falling == sorted(falling, reverse=True)
    assert page.evaluate("document.activeElement.dataset.column") == "change"  # focus stays
    assert page.evaluate("document.activeElement.closest('th').ariaSort") == "descending"
    click(page, "[data-column=change]")
    assert page.evaluate("document.querySelector('[aria-sort]').ariaSort") == "ascending"
    page.evaluate("document.getElementById('filter').focus()")
    page.type("L1 head")
    assert texts(page, "#nodes tbody th")
    assert all(one.startswith("L1 head") for one in texts(page, "#nodes tbody th"))
    assert "fit" in texts(page, "#count")[0]
    page.evaluate("document.getElementById('filter').select()")
    page.type("no such node")
    assert texts(page, "#nodes tbody th") == []
    assert texts(page, "#card *") == []


def test_a_token_shows_its_nodes_alone(page):
    page.evaluate("document.querySelectorAll('#prompt button')[3].click()")
    token = texts(page, "#prompt .token[aria-pressed=true]")
    assert len(token) == 1
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent).nodes")
    of_token = [one for one in data if 3 in (one["token"], one["attended_to"])]
    assert texts(page, "#count")[0].endswith(f"{len(of_token)} fit")
    page.evaluate("document.querySelectorAll('#prompt button')[3].click()")
    assert texts(page, "#prompt .token[aria-pressed=true]") == []
    assert page.evaluate("document.activeElement === document.querySelectorAll('#prompt button')[3]")


def test_everything_can_be_done_with_the_keyboard(page):
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "run-change"
    page.press("Tab")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('[name=scalar]:checked').value") == "act_times_grad"
    assert texts(page, "#meaning")[0].startswith("act × grad: ")
    page.evaluate("document.querySelector('button.node').focus()")
    first = texts(page, "#card .spelling")
    page.press("ArrowDown")
    assert texts(page, "#card .spelling") != first
    page.press("End")
    assert page.evaluate("document.activeElement === [...document.querySelectorAll('button.node')].pop()")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "more"  # past the whole table
    page.press("Enter")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter((one) =>"
        " !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).length"
    )
    assert unnamed == 0


def test_the_grid_says_what_the_answer_lists(page):
    assert texts(page, "#attention-hint")[0].startswith("Each cell is the change of direct effect of ")
    click(page, "#run-0")
    data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
    heads = {one["component"] for one in data["nodes"] if one["type"] == "attention_head"}
    assert len(texts(page, "#heads label")) == 1 + len(heads)
    page.evaluate("document.querySelectorAll('[name=head]')[1].click()")
    click(page, "#whole input")  # not its attention, but the chosen number
    chosen = page.evaluate("document.querySelector('[name=head]:checked').value")
    listed = [
        row
        for row, one in enumerate(data["nodes"])
        if one["component"] == chosen and one["attended_to"] is not None
    ]
    n_tokens = len(data["tokens"])
    assert len(texts(page, "#attention td.unlisted")) == n_tokens * (n_tokens + 1) // 2 - len(listed)
    assert texts(page, "#attention caption") == [chosen]
    for row in listed:
        node, value = data["nodes"][row], data["runs"][0]["scalars"]["direct_effect"][row]
        place = f"tr:nth-child({node['token'] + 1}) td:nth-child({node['attended_to'] + 2})"
        title = page.evaluate(f"document.querySelector('#attention tbody {place}').title")
        shown = float(title.rpartition(": ")[2].replace("−", "-"))
        assert shown == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_the_whole_attention_of_a_head_is_shown(page):
    assert page.evaluate("document.getElementById('whole').hidden")  # there is none of all heads together
    click(page, "#run-0")
    page.evaluate("document.querySelectorAll('[name=head]')[1].click()")
    titles: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#attention tbody tr')].map("
        "(row) => [...row.querySelectorAll('td:not(.later)')].map((one) => one.title))"
    )
    rows = [[float(one.rpartition(": ")[2]) for one in row] for row in titles]
    n_tokens = len(texts(page, "#prompt .word"))
    assert [len(row) for row in rows] == list(range(1, n_tokens + 1))
    assert [sum(row) for row in rows] == pytest.approx([1.0] * n_tokens, abs=0.01)
    click(page, "#run-change")
    changes = page.evaluate("[...document.querySelectorAll('#attention tbody td')].map((one) => one.title)")
    assert any(": +" in one or ": −" in one for one in changes)


def test_direct_effects_add_up(page):
    click(page, "#run-0")
    *parts, all_here, _ = figures(page, "#sums tfoot td")
    assert all_here == pytest.approx(sum(parts), abs=0.01)


def test_the_request_can_be_copied(page):
    shown = texts(page, "#request pre")
    assert shown[0].startswith("tdb debug --prompt")
    click(page, "#request button")
    assert page.evaluate("getSelection().toString()") == shown[0]
    assert json.loads(shown[2])["subRequests"][1]["nodeAblations"]


def test_print_shows_the_numbers_without_the_controls(page, tmp_path):
    page.send("Emulation.setEmulatedMedia", media="print")
    page.send("Emulation.setDeviceMetricsOverride", width=703, height=1000, deviceScaleFactor=1, mobile=False)
    assert page.evaluate("document.documentElement.scrollWidth") == 703  # A4 less its margins
    hidden = "getComputedStyle(document.querySelector({})).display"
    for selector in ("#card", "#more", "#heads", ".copied button"):
        assert page.evaluate(hidden.format(json.dumps(selector))) == "none"
    assert page.evaluate("getComputedStyle(document.querySelector('.word')).printColorAdjust") == "exact"
    page.print_to_pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_letters_can_be_read_on_every_colour(page):
    """WCAG's contrast of text on the cells, for the deepest colours and the faintest letters."""
    lowest = page.evaluate("""(() => {
      const channels = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (text) => channels(text).slice(0, 3).map((one) => one / 255)
        .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
      const behind = (one) => {
        for (; one; one = one.parentElement) {
          const colour = getComputedStyle(one).backgroundColor;
          if (channels(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
      };
      const contrast = (one) => {
        const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => b - a);
        return (a + 0.05) / (b + 0.05);
      };
      const seen = [...document.querySelectorAll("body *")].filter((one) => one.offsetParent &&
        [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
      return Math.min(...seen.map(contrast));
    })()""")
    assert lowest >= 4.5


def test_prompts_cannot_run_anything(server, tmp_path):
    with Client(f"127.0.0.1:{server.port}") as client:
        result = client.debug(f"the cat {EVIL}", TARGET, DISTRACTOR, request_id="an-id")
    file = tmp_path / "evil.html"
    file.write_text(result.to_html(), encoding="utf-8")
    with opened(file, *LAPTOP) as page:
        assert page.evaluate("document.title") == "Why ' the' rather than ' of'?"
        assert "".join(texts(page, "#prompt .word")) == f"the cat {EVIL}"
        assert page.evaluate("document.querySelectorAll('img, body > script:not([type])').length") == 1
        assert page.complaints == []
        # Even what would get in could not run: the page's policy knows one script by its digest.
        page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')"
        )
        page.evaluate("new Promise((done) => setTimeout(done, 100))")
        assert page.evaluate("document.title") == "Why ' the' rather than ' of'?"


def test_a_notebook_shows_the_page_in_a_frame(server, tmp_path):
    plain = DebugSubRequest.of(PROMPT, TARGET, DISTRACTOR)
    with Client(f"127.0.0.1:{server.port}") as client:
        (result,) = client.debug_many([plain])
    file = tmp_path / "notebook.html"
    file.write_text(
        f"<!doctype html><title>notebook</title><h1>mine</h1>{result._repr_html_()}", encoding="utf-8"
    )
    assert frame(result.to_html()) in file.read_text(encoding="utf-8")
    with opened(file, *NOTEBOOK) as page:
        assert page.complaints == []
        assert page.evaluate("getComputedStyle(document.querySelector('h1')).fontSize") == "32px"  # its own
        deadline = time.monotonic() + 20
        colours: dict[str, int] = {}
        while not colours.keys() & {BLUE, ORANGE} and time.monotonic() < deadline:  # frames paint later
            colours = page.picture(tmp_path / "notebook.png", whole=False).colours
        assert colours.keys() & {BLUE, ORANGE}

"""The documentation: links lead somewhere, and paths in it exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")],
    key=lambda page: str(page.relative_to(ROOT)),
)
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
FOLDERS = ("benchmarks", "client", "docs", "examples", "protos", "server", "tests")
INDEX = ROOT / "docs" / "README.md"


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What links may name in a page, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # tells of what was, too
    text = without_code(page.read_text(encoding="utf-8"))
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w./-]+)::(\w+)", page.read_text(encoding="utf-8")):
        assert re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (
            f"{path}::{name}"
        )


def test_every_promise_of_security_has_its_test() -> None:
    promised = (ROOT / "docs" / "security.md").read_text().partition("## What is promised")[2]
    rows = [one for one in promised.partition("\n## ")[0].splitlines() if one.startswith("| ")]
    promises = [one for one in rows if not re.match(r"\| (?:promise|---) \|", one)]
    assert len(promises) > 20
    for one in promises:
        assert re.search(r"`tests/[\w./-]+::test_\w+`[^`]*\|$", one), one


def test_the_index_lists_every_page() -> None:
    listed = {(INDEX.parent / one).resolve() for one in re.findall(r"\]\(([^)#]+)\)", INDEX.read_text())}
    missing = {page for page in (ROOT / "docs").glob("*.md") if page != INDEX} - listed
    assert not missing

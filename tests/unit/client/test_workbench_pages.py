"""The files of the workbench's page: modules that find each other, and texts that stay texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tdb_client.report
import tdb_client.workbench

REPORT = Path(tdb_client.report.__file__).parent
PAGES = Path(tdb_client.workbench.__file__).parent / "pages"
MODULES = sorted(PAGES.glob("*.js"))
EXPORT = re.compile(r"^export (?:async )?(?:function\*?|class|const) (\w+)", re.MULTILINE)
IMPORT = re.compile(r'(?:import \{(?P<names>[^}]*)\} from|import\()\s*"(?P<path>[^"]+)"')


@pytest.mark.parametrize("module", MODULES, ids=lambda one: one.name)
def test_scripts_only_ever_make_texts(module: Path) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|cssText|localStorage",
        module.read_text(encoding="utf-8"),
    )


@pytest.mark.parametrize("module", [*MODULES, *sorted(REPORT.glob("*.js"))], ids=lambda one: one.name)
def test_imports_name_what_is_exported(module: Path) -> None:
    """There is no build step that would notice."""
    source = module.read_text(encoding="utf-8")
    for found in IMPORT.finditer(source):
        folder = REPORT if "../report/" in found["path"] else module.parent
        exported = set(EXPORT.findall((folder / Path(found["path"]).name).read_text(encoding="utf-8")))
        wanted = {one.strip() for one in (found["names"] or "").split(",") if one.strip()}
        assert wanted <= exported, (found["path"], wanted - exported)
        for name in wanted:
            assert len(re.findall(rf"\b{name}\b", source)) > 1, f"{name} is imported and not used"


@pytest.mark.parametrize("page", ["workbench.html", "no_such_page.html"])
def test_the_page_has_nothing_inline(page: str) -> None:
    text = (PAGES / page).read_text(encoding="utf-8")
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)", text)
    assert not re.search(r"""(?:href|src)="(?!\$\{base\}|data:,|#)""", text)  # all relative to the page


def test_every_picture_has_a_module() -> None:
    names = re.findall(r'\{ name: "(\w+)"', (PAGES / "pictures.js").read_text(encoding="utf-8"))
    assert len(names) >= 5
    for name in names:
        assert "draw" in EXPORT.findall((PAGES / f"{name}.js").read_text(encoding="utf-8"))

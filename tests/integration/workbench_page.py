"""The workbench in a real browser, as somebody in front of it sees and uses it."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tests.integration.browser import Page, opened

LAPTOP, PHONE = (1366, 768), (360, 740)
SECONDS = 120.0
SERIOUS = ("serious", "critical")


@dataclass
class Workbench:
    """An open workbench. Elements are named by CSS selectors; `click` does what a pointer would."""

    page: Page

    def text(self, selector: str) -> str:
        return "".join(self.texts(selector))

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)"
        )
        return found

    def count(self, selector: str) -> int:
        return len(self.texts(selector))

    def value(self, selector: str) -> str:
        found: str = self.page.evaluate(f"document.querySelector({json.dumps(selector)}).value")
        return found

    def click(self, selector: str, at: int = 0) -> None:
        self.page.evaluate(
            f"(one => {{ one.focus({{ preventScroll: true }}); one.click(); }})"
            f"(document.querySelectorAll({json.dumps(selector)})[{at}])"
        )

    def write(self, selector: str, text: str) -> None:
        """Replaces the text of a field by typing."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.page.evaluate(f"{field}.focus(); {field}.select()")
        if text:
            self.page.type(text)
        else:
            self.page.evaluate(f"{field}.value = ''; {field}.dispatchEvent(new Event('input'))")

    def wait(self, condition: str, seconds: float = SECONDS) -> Any:
        """Waits until an expression of the page is true, and gives its value."""
        deadline = time.monotonic() + seconds
        while not (found := self.page.evaluate(condition)):
            assert time.monotonic() < deadline, (condition, self.text("#progress"), self.page.complaints)
            time.sleep(0.02)
        return found

    def wait_for(self, selector: str) -> None:
        self.wait(f"document.querySelector({json.dumps(selector)}) !== null")

    def answered(self) -> None:
        """Waits until nothing is on its way."""
        self.wait("document.getElementById('answer').getAttribute('aria-busy') === 'false'")

    def run(self) -> None:
        self.click("#run")
        self.answered()

    def values(self) -> list[float]:
        """The objective before, after, and its change."""
        return [float(one.replace("−", "-")) for one in self.texts("#values strong")]

    def row(self, spelling: str) -> str:
        """A selector for the row of a node in the table."""
        at = self.page.evaluate(
            "[...document.querySelectorAll('#nodes button.node')]"
            f".findIndex((one) => one.title === {json.dumps(spelling)})"
        )
        assert at >= 0, (spelling, self.texts("#nodes tbody th"))
        return f"#nodes tbody tr:nth-child({at + 1})"

    def listed(self, kind: str) -> list[str]:
        """The nodes of a kind that the table shows, in its order."""
        found: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('#nodes button.node')].map((one) => one.title)"
        )
        return [one for one in found if f" {kind} " in one]

    def act(self, spelling: str, action: str) -> None:
        """Chooses an action of the card of a node in the table."""
        self.click(f"{self.row(spelling)} button.node")
        self.click(f"#card [data-action={action}]")

    def open_picture(self, name: str) -> None:
        """Opens one of the further pictures, and waits until it is drawn."""
        place = f"#{name}-picture .picture-place"
        self.click(f"#{name}-picture summary")
        self.wait(f"document.querySelector('{place}').childElementCount > 0")
        self.wait(f"document.querySelector('{place}:is([aria-busy], :has([aria-busy]))') === null")

    def serious_faults(self) -> list[str]:
        """What axe-core finds that keeps people out."""
        source = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(f"{source}; undefined")
        found = self.page.evaluate(
            "axe.run(document, { resultTypes: ['violations'] }).then((one) => one.violations)"
        )
        return [
            f"{one['id']}: {node['html'][:120]} {node.get('failureSummary', '')}"
            for one in found
            if one["impact"] in SERIOUS
            for node in one["nodes"]
        ]


def fragment(question: dict[str, Any]) -> str:
    return f"#q={urllib.parse.quote(json.dumps(question))}"


@contextmanager
def workbench(address: str, width: int = LAPTOP[0], height: int = LAPTOP[1]) -> Iterator[Workbench]:
    """The workbench at an address, once it knows the model."""
    with opened(address, width, height) as page:
        one = Workbench(page)
        one.wait("document.getElementById('model').textContent !== ''")
        yield one

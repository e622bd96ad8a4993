"""The page itself: template, style, script and data put together, so that nothing is fetched from anywhere.

A prompt is whatever somebody typed. The data stand in a block that browsers do not run, with `<`, `>` and
`&` escaped; the script puts texts into the page as texts alone; and the page's own policy lets nothing run
but the script that is meant, by its digest, and nothing load at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from string import Template

from tdb_client.debug_answer import DebugAnswer
from tdb_client.report.data import report_data
from tdb_client.token_text import printable

SCRIPTS = (
    "numbers",
    "elements",
    "focus",
    "state",
    "prompt",
    "logits",
    "sums",
    "nodes",
    "card",
    "attention",
    "request",
    "answer",
    "report",
)
"""The modules that the script is made of, in the order they need each other."""


def page(results: Sequence[DebugAnswer]) -> str:
    """One result as a page, or two for the same prompt: before and after.

    Raises:
        ValueError: the two have different prompts, baselines or objectives.
    """
    style = _file("report.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_without_modules, SCRIPTS)) + "})();\n"
    question = _question(results[-1])
    return Template(_file("report.html")).substitute(
        title=html.escape(question),
        question=html.escape(question),
        prompt=html.escape("".join(map(printable, results[0].prompt.tokens))),
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        data=_json(report_data(results)),
    )


def _without_modules(name: str) -> str:
    """A module's text as part of one script, in which all names are known without being imported."""
    return re.sub(r"^import [^;]*;\n|^export ", "", _file(f"{name}.js"), flags=re.MULTILINE)


def _question(result: DebugAnswer) -> str:
    """The question that the page answers."""
    request = result.request
    if request.trace is not None or request.loss is not None:
        return f"Why {result.objective}?"
    rather = f" rather than {' or '.join(result.distractor_words)}" if request.distractor else ""
    return f"Why {' or '.join(result.target_words)}{rather}?"


def _json(data: object) -> str:
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _file(name: str) -> str:
    return files("tdb_client.report").joinpath(name).read_text(encoding="utf-8")

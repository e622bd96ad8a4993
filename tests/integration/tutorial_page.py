"""Reads a page of the docs: the commands and programs on it, and what they are said to print."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LEFT_OUT = "…"


@dataclass(frozen=True)
class Step:
    """Something to run, and the lines it is said to print.

    Attributes:
        language: `sh` or `python`.
        text: the commands or the program.
        shown: what stands below it; empty where nothing does.
        heading: the heading above.
    """

    language: str
    text: str
    shown: tuple[str, ...]
    heading: str


def steps(page: Path) -> list[Step]:
    """Everything to run on a page, in order."""
    found: list[Step] = []
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        if block["language"] in ("sh", "python"):
            heading = re.findall(r"^#+ (.+)$", text[: block.start()], re.MULTILINE)[-1]
            found.append(Step(block["language"], block["text"], (), heading))
        elif block["language"] == "text":
            last = found.pop()
            found.append(Step(last.language, last.text, tuple(block["text"].splitlines()), last.heading))
    return found


def missing(shown: tuple[str, ...], printed: str) -> list[str]:
    """The shown lines that were not printed in this order.

    Numbers may differ by 2 % or 0.02, for other processors round otherwise, and space does not matter. `…`
    stands for lines left out or, at the end of a line, for the rest of it.
    """
    lines = iter(printed.splitlines())
    return [one for one in shown if one.strip() != LEFT_OUT and not _appears(one, lines)]


def _appears(shown: str, lines: Iterator[str]) -> bool:
    is_start = shown.rstrip().endswith(LEFT_OUT)
    wanted = shown.rstrip().removesuffix(LEFT_OUT).split() if is_start else shown.split()
    for line in lines:
        words = line.split()
        if is_start:
            words = words[: len(wanted)]
        if len(words) == len(wanted) and all(map(_is_alike, wanted, words)):
            return True
    return False


def _is_alike(wanted: str, word: str) -> bool:
    if wanted == word:
        return True
    try:
        return math.isclose(float(wanted.rstrip(",")), float(word.rstrip(",")), rel_tol=0.02, abs_tol=0.02)
    except ValueError:
        return False

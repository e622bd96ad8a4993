"""Blocks own the transformer: nothing outside `model/` names a weight, a norm, a gate or a family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tdb_server
from tdb_server.model.families import FAMILIES

ROOT = Path(tdb_server.__file__).parent
WORDS = (
    r"\.weights\b",
    r"\.gain\b",
    r"\.bias\b",
    r"\.(final_|head_|)norms?\b(?!\()",
    "gated",
    '"layer_norm"',
    '"rms_norm"',
    "rotary",
    "sliding_window",
    "qkv",
    r"\b(gelu|silu)",
    *(rf"\b{re.escape(family)}\b" for family in FAMILIES),
)
OTHERS = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] in ("engine", "workers", "service", "gateway", "domain")
]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_word_of_it(path: Path) -> None:
    code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
    assert [word for word in WORDS if re.search(word, code)] == []


def test_the_words_are_found_where_they_belong() -> None:
    code = (ROOT / "model/decoder.py").read_text()
    assert {word for word in WORDS if re.search(word, code)} >= set(WORDS[:5])

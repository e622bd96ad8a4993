"""What the page sends is told back in few words, whatever it was."""

from __future__ import annotations

from typing import Any

import pytest
from tdb_client.workbench.body_reader import QuestionError
from tdb_client.workbench.routes import ROUTES

LONG = 5000


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("debug", {"changes": [f"L{'9' * LONG} head 2 @ 3"]}, "changes[0]"),
        ("debug", {"trace": "x" * LONG}, "trace"),
        ("debug", {"onlyThese": ["x" * LONG]}, "onlyThese[0]"),
        ("debug", {"x" * LONG: 1}, "x" * 200),
        ("debug", {"\ud800": 1}, "\\ud800"),  # else no answer could be written
        ("node", {"node": f"L0.neuron.{'9' * LONG}"}, "node"),
    ],
)
def test_what_is_refused_is_told_in_few_words(route: str, body: dict[str, Any], field: str) -> None:
    question = {"prompt": "a", "target": ["b"]} | body
    with pytest.raises(QuestionError) as caught:
        ROUTES[route].read(body if route == "node" else {"question": question})
    (fault,) = caught.value.violations
    assert fault.path == field
    assert len(str(caught.value).encode()) < 1000

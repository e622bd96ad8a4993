"""Bodies are read within bounds, and written in pieces."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import pytest
from tdb_server.errors import InvalidRequest, OverLimit
from tdb_server.gateway.json_text import MAX_PARTS, PIECE_BYTES, SHORT_BYTES, json_pieces, read_json

LONG = " " * SHORT_BYTES
"""In front of a text: it is read as long ones are."""


@pytest.mark.parametrize(
    "value",
    [
        [1, -2.5, 1e300, True, None, 'a"\\\n\u2028😀', {}, [], {"": [{"a": [[]]}]}],
        {"a": {"b": '{[,"'}},
        "x",
        7,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_long_texts_mean_what_short_ones_mean(value: Any, encoding: str) -> None:
    text = json.dumps(value)
    assert read_json((text + LONG).encode(encoding)) == read_json(text.encode(encoding)) == value


@pytest.mark.parametrize(
    "text", ["{", "[1,]", '{"a" 1}', '"', "nul", "", "[" * 100_000, '"\\ud8', "1 2", "9" * 5000]
)
def test_what_is_not_json(text: str) -> None:
    for one in (text, text + LONG):
        with pytest.raises(InvalidRequest, match="is not JSON"):
            read_json(one.encode())


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(InvalidRequest, match="is not JSON"):
        read_json(b"\xff" * 2 * SHORT_BYTES)


@pytest.mark.parametrize("entry", ["[]", "{}", '""', "0", '"a","b"', '"\\""'])
def test_bodies_of_too_many_parts(entry: str) -> None:
    text = "[" + ",".join([entry] * (MAX_PARTS + 1)) + "]"
    with pytest.raises(OverLimit, match="262144"):
        read_json(text.encode())


def test_what_stands_in_strings_is_no_part() -> None:
    prose = 'a, b, [c], {d}, \\"e\\", ' * (MAX_PARTS // 8)
    assert read_json(f'["{prose}"]'.encode()) == [prose.replace("\\", "")]


def test_others_run_while_a_long_text_is_read() -> None:
    """C's own reader would hold them up from beginning to end."""
    text = ("[" + ",".join(["[]"] * (MAX_PARTS // 2 - 1)) + "]").encode()
    switch_seconds = sys.getswitchinterval()
    reading = threading.Thread(target=read_json, args=(text,))
    reading.start()
    n_turns = 0
    while reading.is_alive():
        time.sleep(0)
        n_turns += 1
    reading.join()
    assert n_turns > 5, switch_seconds


def test_pieces() -> None:
    rows = [{"n": n, "text": "é" * 1000} for n in range(1000)]
    body = {
        "list": iter(rows),
        "empty": iter(()),
        "later": lambda: {"a": iter([1])},
        "none": {},
        "many": [{"b": None}],
    }
    pieces = list(json_pieces(body))
    assert len(pieces) > 3
    for piece in pieces[:-1]:
        assert PIECE_BYTES <= len(piece) < PIECE_BYTES + 3000
    wanted = {"list": rows, "empty": [], "later": {"a": [1]}, "none": {}, "many": [{"b": None}]}
    assert json.loads(b"".join(pieces)) == wanted


def test_nothing_is_made_before_its_turn() -> None:
    made = []

    def rows() -> Any:
        for n in range(100):
            made.append(n)
            yield "a" * PIECE_BYTES

    pieces = json_pieces({"rows": rows()})
    next(pieces)
    assert made == [0]

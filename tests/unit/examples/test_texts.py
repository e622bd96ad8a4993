from __future__ import annotations

import json
from pathlib import Path

import pytest
from tdb_server.errors import ConfigurationBroken
from tdb_server.examples import texts
from tdb_server.examples.random_sample import RandomSample
from tdb_server.examples.texts import Piece, pieces_of, read_texts


def written(folder: Path, content: str, name: str = "texts.jsonl") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_a_text_a_line(tmp_path: Path) -> None:
    lines = ['{"text": "A é"}', "", '{"text": "", "id": 1}', '{"id": 2, "text": "B\\nC"}']
    path = written(tmp_path, "\n".join(lines))
    found = list(read_texts(path))
    assert [(one.number, one.content) for one in found] == [(0, "A é"), (1, "B\nC")]
    assert found[-1].end == path.stat().st_size
    assert list(read_texts(path, found[0].end, 1)) == found[1:]


def test_plain_lines(tmp_path: Path) -> None:
    path = written(tmp_path, '  {"a"\n\nb\n', "texts.txt")
    assert [one.content for one in read_texts(path)] == ['  {"a"', "b"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"text": 3}', '{"text": "\\ud800"}', '"text"'])
def test_lines_without_a_text(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, json.dumps({"text": "first"}) + f"\n{line}\n")
    with pytest.raises(
        ConfigurationBroken, match=r'^--texts: .*the line at byte 18 is not an object {"text"'
    ):
        list(read_texts(path))


def test_no_line_takes_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_LINE_BYTES", 30)
    path = written(tmp_path, json.dumps({"text": "x" * 31}))
    with pytest.raises(ConfigurationBroken, match="line at byte 0 has more than 30 bytes"):
        list(read_texts(path))


@pytest.mark.parametrize("leading", [None, 99])
@pytest.mark.parametrize("n_tokens", [*range(12), 40])
def test_every_token_but_a_first_one_counts_once(leading: int | None, n_tokens: int) -> None:
    """The first token of a piece does not count."""
    token_ids = list(range(n_tokens))
    pieces = list(pieces_of(7, token_ids, leading, context=5))
    assert all(2 <= len(one.token_ids) <= 5 and one.text == 7 for one in pieces)
    counted = [token_id for one in pieces for token_id in one.token_ids[1:]]
    assert counted == token_ids[leading is None :]
    if leading is not None:
        assert {one.token_ids[0] for one in pieces} <= {leading}
    for one in pieces:
        assert token_ids[one.start] == one.token_ids[leading is not None]


def test_pieces_share_a_token_where_nothing_stands_in_front() -> None:
    assert list(pieces_of(0, [5, 6, 7, 8], None, 3)) == [Piece(0, 0, (5, 6, 7)), Piece(0, 2, (7, 8))]


def test_each_piece_is_as_likely_to_be_taken() -> None:
    counts = [0] * 20
    for seed in range(400):
        sample = RandomSample(5, seed)
        for piece in range(20):
            sample.see(piece)
        for piece in sample.pieces:
            counts[piece] += 1
    assert all(65 <= one <= 140 for one in counts)  # 100, with a standard deviation of 9


def test_a_sample_goes_on_from_what_was_taken() -> None:
    whole, first, second = (RandomSample(3, 1) for _ in range(3))
    for piece in range(50):
        whole.see(piece)
        (first if piece < 30 else second).see(piece)
        if piece == 29:
            for taken in first.pieces:
                second.see(taken)
    assert second.pieces == whole.pieces
    assert len(whole.pieces) == 3

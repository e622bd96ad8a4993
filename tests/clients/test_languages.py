"""The example clients in other languages against a real server. Run by `make clients`, which builds them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from examples.vectors.make import VECTOR
from tests.clients.cancellations import cancelled_calls, has_one_more
from tests.clients.damaging_proxy import damaging
from tests.running_server import RunningServer

pytestmark = [pytest.mark.clients, pytest.mark.slow]
PROGRAMS = {
    "typescript": ("node", "typescript/dist/src/main.js"),
    "cpp": ("cpp/build/explain",),
    "ruby": ("ruby", "ruby/explain.rb"),
    "java": ("java", "@java/build/run", "explain.Main"),
}
EXAMPLES = VECTOR.parents[1]
SECONDS = 60


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The command of one language."""
    command: tuple[str, ...] = PROGRAMS[request.param]
    return command


@pytest.fixture(scope="module")
def vector() -> dict[str, Any]:
    file: dict[str, Any] = json.loads(VECTOR.read_text())
    return file


def run(program: tuple[str, ...], port: int, vector: Path) -> subprocess.CompletedProcess[str]:
    command = [*program, f"127.0.0.1:{port}", str(vector)]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=SECONDS)


def test_program_explains(
    program: tuple[str, ...], small_chunks: RunningServer, vector: dict[str, Any]
) -> None:
    n_cancelled = cancelled_calls(small_chunks)
    ended = run(program, small_chunks.port, VECTOR)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    ten = [one["node"] for one in vector["answers"][0]["nodes"][:10]]
    assert said[0] == "tiny-a: 3 layers of 4 heads"
    assert [line[18:] for line in said[2:12]] == ten
    assert said[12] == "refused with INVALID_ARGUMENT, OUT_OF_RANGE:"
    for line, violation in zip(said[13:], vector["refused"]["fieldViolations"], strict=False):
        assert line.startswith(f"  {violation['field']}: ")
    compared = [line for line in said if line.startswith("compared with: ")]
    assert compared == (
        ["compared with: When John and Mary went to the store, John gave a drink to"]
        if program[0] == "ruby"
        else []
    )
    assert said[-2:] == ["cancelled: CANCELLED", f"all as in {VECTOR}"]
    assert has_one_more(small_chunks, n_cancelled)


def test_program_sees_a_number_that_is_wrong(
    program: tuple[str, ...], small_chunks: RunningServer, vector: dict[str, Any], tmp_path: Path
) -> None:
    wrong = json.loads(json.dumps(vector))
    wrong["answers"][1]["sums"][-1]["values"][-1] += 0.001
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    ended = run(program, small_chunks.port, tmp_path / "wrong.json")
    assert ended.returncode != 0
    assert "cancelled: CANCELLED" in ended.stdout


def test_program_sees_damage(program: tuple[str, ...], small_chunks: RunningServer) -> None:
    with damaging(small_chunks) as port:
        ended = run(program, port, VECTOR)
    assert ended.returncode != 0
    assert "arrived damaged" in ended.stderr

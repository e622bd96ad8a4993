"""The commands of the README for generic clients, as they stand there, against a real server."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.running_server import RunningServer

REPOSITORY = Path(__file__).parents[2]
COMMANDS = [
    re.sub(r"\\\n\s*", "", command)
    for command in re.findall(
        r"^    (buf curl (?:.*\\\n|.*\n(?=     ))*.*)$", (REPOSITORY / "README.md").read_text(), re.MULTILINE
    )
]


@pytest.mark.parametrize(("method", "field"), [("GetModelInfo", "modelInfo"), ("Debug", "subResponses")])
def test_buf_curl_gets_an_answer(server: RunningServer, method: str, field: str) -> None:
    (command,) = [one for one in COMMANDS if one.endswith(f"/{method}")]
    words = shlex.split(command.replace("127.0.0.1:50051", f"127.0.0.1:{server.port}"))
    # The tiny model has no token for the names that the default one knows.
    words = [one.replace('" Mary"', '" the"').replace('" John"', '" of"') for one in words]
    done = subprocess.run(
        [REPOSITORY / ".venv" / "bin" / words[0], *words[1:]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[field]

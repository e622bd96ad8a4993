"""What the Makefile would run, without running it."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def torch_line(*variables: str) -> str:
    """The command that installs torch, were there nothing installed."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/.installed", *variables],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = [one for one in done.stdout.splitlines() if "torch==" in one]
    return line


def test_an_index_for_torch_may_be_chosen() -> None:
    assert "--index-url" not in torch_line()
    index = "https://download.pytorch.org/whl/cpu"
    assert f"--index-url '{index}' torch==" in torch_line(f"TORCH_INDEX={index}")

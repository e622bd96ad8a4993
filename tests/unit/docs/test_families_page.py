"""docs/families.md: its patch applies, and adds a family that is computed as transformers does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tdb_server.model.families import FAMILIES

from tests.random_models import reference_model, write_random_model

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/families.md"
RUN = """
import sys
from pathlib import Path
import numpy as np
import torch
from tdb_server.model.weights import load_decoder

decoder = load_decoder(Path(sys.argv[1]), "cpu", torch.float32)
ids = torch.arange(20)[None] * 11
with torch.no_grad():
    np.save(sys.argv[2], decoder.logits(decoder.forward(decoder.embed(ids))))
"""


@torch.no_grad()
def test_the_patch_adds_a_family(tmp_path: Path) -> None:
    left = shutil.ignore_patterns("*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "server/src", tmp_path / "server/src", ignore=left)
    found = re.search(r"^```diff\n(.+?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    subprocess.run(["git", "apply"], input=found[1], text=True, cwd=tmp_path, check=True)
    folder = write_random_model(tmp_path / "model", "starcoder2", sliding_window=7)
    assert "starcoder2" not in FAMILIES
    logits = tmp_path / "logits.npy"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "server/src")}
    command = [sys.executable, "-c", RUN, str(folder), str(logits)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    expected = reference_model(folder, torch.float64)(torch.arange(20)[None] * 11).logits
    np.testing.assert_allclose(np.load(logits), expected, atol=1e-4, rtol=1e-4)


def test_every_family_is_in_the_table() -> None:
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(FAMILIES) <= named

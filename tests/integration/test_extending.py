"""docs/extending.md: its patch applies, and adds a derived scalar that a server computes rightly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import TINY_MODEL, start, stop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COPIED = ("protos", "server/src", "client/src")
ASK = """
import sys
import numpy as np
from tdb_client import Client, DerivedScalarsSpec, InferenceSubRequest, Loss

LAYER = 1

def asked(**wanted):
    loss = Loss("logit_diff", (" the",), (" of",))
    return client.infer([InferenceSubRequest("the cat sat on the", loss=loss, results=wanted)])[0].results

with Client(sys.argv[1]) as client:
    new = asked(new=DerivedScalarsSpec("mlp_layer_act_times_grad", LAYER))["new"].activations
    total = np.zeros_like(new)
    for channel in range(client.model_info().d_model):
        write = DerivedScalarsSpec("resid_delta_mlp", LAYER, channel)
        gradient = DerivedScalarsSpec("resid_delta_mlp", LAYER, channel, pass_type="backward")
        found = asked(write=write, gradient=gradient)
        total += found["write"].activations * found["gradient"].activations
    np.testing.assert_allclose(new, total, rtol=1e-4, atol=1e-6)
    assert np.abs(new).max() > 0.1
    print("equal")
"""


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """A copy of the sources with the page's patch applied and its code generated."""
    left = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left)
    (tmp_path / "docs").mkdir()
    found = re.search(
        r"^```diff\n(.+?)^```", (ROOT / "docs/extending.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    subprocess.run(["git", "apply"], input=found[1], text=True, cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "protos/generate.py"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "protos/reference.py"], cwd=tmp_path, check=True)
    return tmp_path


def test_a_derived_scalar_is_added_by_the_patch_alone(patched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DERIVED_SCALAR_TYPE_MLP_LAYER_ACT_TIMES_GRAD" in (patched / "docs/api.md").read_text()
    sources = (patched / "protos/gen/python", patched / "server/src", patched / "client/src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sources)))
    server = start(patched, model=TINY_MODEL)
    try:
        command = [sys.executable, "-c", ASK, f"127.0.0.1:{server.port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout == "equal\n", done.stderr
    finally:
        stop(server)

"""A real Gemma, 3 270M as a GGUF file, served here and read by transformers. Run by `make gemma-test`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from tdb_client import Client

from tests.chaos.vitals import peak_bytes
from tests.running_server import start, stop
from tests.unit.model.test_hard_texts import HARD_TEXTS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-gemma" / "bin" / "python"
ORACLE_SECONDS = 900
PROMPTS = (
    "When Mary and John went to the store, John gave a drink to",
    "The capital of France is",
    "def factorial(n):\n    if n == 0:\n        return",
    "Yesterday it rained all day, so today the ground is still",
    "1, 2, 3, 4, 5, 6,",
    "Der schnelle braune Fuchs springt über den faulen",
    "The keys to the cabinet that stood beside the old doors",
    "東京は日本の",
    "  Dear Sir or Madam,\n\nI am writing to",
    "Water boils at a hundred degrees. " * 75 + "Water boils at a hundred",
)
"""The last one is longer than the window of the layers that slide, 512 tokens."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gemma)


@dataclass(frozen=True)
class Oracle:
    """What transformers says.

    Attributes:
        file: the model's file.
        with_bos, without_bos: the last token's logits of each prompt, [n_prompts, V].
        cut: the tokens of each hard text.
    """

    file: Path
    with_bos: np.ndarray
    without_bos: np.ndarray
    cut: dict[str, list[int]]


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """Of a child process, in an environment that has a file's packages and another transformers."""
    with TemporaryDirectory(prefix="gemma-") as name:
        folder = Path(name)
        texts = [*HARD_TEXTS, *PROMPTS]
        (folder / "texts.json").write_text(json.dumps({"prompts": PROMPTS, "texts": texts}))
        command = [ENVIRONMENT, Path(__file__).with_name("oracle.py"), folder]
        subprocess.run(command, check=True, timeout=ORACLE_SECONDS)
        logits = np.load(folder / "oracle.npz")
        cut = json.loads((folder / "cut.json").read_text())
        (file,) = folder.glob("*.gguf")
        yield Oracle(file, logits["with_bos"], logits["without_bos"], dict(zip(texts, cut, strict=True)))


@pytest.fixture(scope="session")
def client(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server of the same file."""
    environment = os.environ | {"XDG_CACHE_HOME": str(oracle.file.parent / "cache")}
    begun_at = time.monotonic()
    server = start(tmp_path_factory.mktemp("server"), model=oracle.file, environment=environment)
    print(f"\nthe server was ready after {time.monotonic() - begun_at:.0f} s")
    with Client(f"127.0.0.1:{server.port}", timeout=120) as one:
        yield one
    (worker,) = server.worker_pids()
    for name, pid in (("front", server.process.pid), ("worker", worker)):
        print(f"{name} at its peak {peak_bytes(pid) / 2**20:.0f} MiB")
    stop(server)

from __future__ import annotations

import subprocess
import sys

import tdb_client


def test_importing_the_client_brings_nothing_heavy() -> None:
    script = "import sys, tdb_client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "pandas", "rich", "tdb_server", "google.rpc", "difflib"} & set(
        modules
    )


def test_every_exported_name_exists() -> None:
    assert tdb_client.__all__ == sorted(tdb_client.__all__)
    for name in tdb_client.__all__:
        assert getattr(tdb_client, name) is not None

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tdb_client

REPOSITORY = Path(__file__).parents[3]
MAX_MEGABYTES = 60

USER_SCRIPT = Path(__file__).with_name("user_script.py")
MYPY = (sys.executable, "-m", "mypy", "--strict", "--config-file=")


def run(*command: object, folder: Path) -> str:
    """Runs a command far from this repository, without its settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(one) for one in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def megabytes(files: list[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def test_importing_the_client_brings_nothing_heavy() -> None:
    script = "import sys, tdb_client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "transformers",
        "pandas",
        "rich",
        "shtab",
        "tdb_server",
        "google.rpc",
        "difflib",
        "html",
    }
    assert not heavy & set(modules)
    assert not [name for name in modules if name.startswith(("tdb_client.report", "tdb_client.workbench"))]


def test_every_exported_name_exists() -> None:
    assert tdb_client.__all__ == sorted(tdb_client.__all__)
    for name in tdb_client.__all__:
        assert getattr(tdb_client, name) is not None


@pytest.mark.slow
def test_a_users_script_is_typed(tmp_path: Path) -> None:
    run(*MYPY, USER_SCRIPT, folder=tmp_path)


@pytest.mark.slow
def test_a_users_mistakes_are_found(tmp_path: Path) -> None:
    mistakes = ["from tdb_client import Client", "client = Client()", 'client.debug("p", 5.5)']
    script = tmp_path / "script.py"
    script.write_text("\n".join([*mistakes, 'client.debug("p", mlp="neurons")']))
    done = subprocess.run([*MYPY, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Found 2 errors" in done.stdout


@pytest.mark.slow
def test_wheels_install_without_torch(tmp_path: Path) -> None:
    """Into a clean venv. What is downloaded is small; installed, numpy is larger than all else together."""
    pip = (sys.executable, "-m", "pip")
    for name in ("protos", "client"):  # copied, as a build leaves things behind
        left = shutil.ignore_patterns("*.egg-info", "build")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=left)
    run(*pip, "wheel", "--no-deps", "--wheel-dir", "ours", "./protos", "./client", folder=tmp_path)
    (wheel,) = (tmp_path / "ours").glob("transformer_debugger_client-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("report", "workbench", "workbench/pages"):
        for file in (REPOSITORY / "client/src/tdb_client" / folder).glob("*.*"):
            assert f"tdb_client/{folder}/{file.name}" in packed
    assert "tdb_client/py.typed" in packed

    run(sys.executable, "-m", "venv", "--without-pip", "clean", folder=tmp_path)
    python = tmp_path / "clean" / "bin" / "python"
    clean_pip, package = (*pip, "--python", python), "transformer-debugger-client"
    pinned = ("--constraint", REPOSITORY / "constraints.txt")
    run(*clean_pip, "download", "--dest", "all", "--find-links", "ours", *pinned, package, folder=tmp_path)
    assert megabytes(list((tmp_path / "all").iterdir())) < MAX_MEGABYTES
    found = ("--no-index", "--find-links", "all")
    run(*clean_pip, "install", "--no-compile", *found, package, folder=tmp_path)

    (packages,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    numpy = {"numpy", "numpy.libs"}
    installed = [one for one in packages.iterdir() if one.name.partition("-")[0] not in numpy]
    assert "torch" not in {one.name for one in installed}
    assert megabytes([file for one in installed for file in (one, *one.rglob("*"))]) < MAX_MEGABYTES
    script = "import tdb_client, tdb_client.report.page; print(tdb_client.__file__)"
    assert str(packages) in run(python, "-c", script, folder=tmp_path)
    assert "-F _shtab_tdb tdb" in run(python.with_name("tdb"), "completion", "bash", folder=tmp_path)

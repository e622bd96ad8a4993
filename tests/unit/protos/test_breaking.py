"""The comparison of the protos with the last release, in repositories as people and machines have them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROTOS = "protos/transformer_debugger/v1"
NODE = f"{PROTOS}/node.proto"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.com")
    return subprocess.run(
        ["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True
    ).stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def rename_a_field(folder: Path) -> None:
    proto = folder / NODE
    text = proto.read_text()
    assert "layer_index" in text
    proto.write_text(text.replace("layer_index", "layer"))


def compare(folder: Path, *ref: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, folder / "protos/breaking.py", *ref], capture_output=True, text=True, check=False
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The protos and their tool in a repository with one commit on main."""
    folder = tmp_path / "origin"
    shutil.copytree(ROOT / PROTOS, folder / PROTOS)
    for name in ("buf.yaml", "protos/breaking.py"):
        shutil.copy(ROOT / name, folder / name)
    git(folder.parent, "init", "--quiet", "--initial-branch=main", str(folder))
    commit(folder, "first")
    return folder


def test_nothing_breaks_where_nothing_changes(repository: Path) -> None:
    done = compare(repository)
    assert (done.returncode, done.stdout) == (0, "protos: compared with refs/heads/main\n")


def test_a_renamed_field_breaks_clients(repository: Path) -> None:
    rename_a_field(repository)
    done = compare(repository)
    assert done.returncode != 0
    assert "layer_index" in done.stdout


def test_an_added_field_breaks_nobody(repository: Path) -> None:
    proto = repository / NODE
    text = proto.read_text().rstrip()
    assert text.endswith("}")
    proto.write_text(text + "\n\n// More.\nmessage More {\n  // More.\n  string more = 1;\n}\n")
    assert compare(repository).returncode == 0


def test_the_newest_release_counts(repository: Path) -> None:
    for tag in ("v0.9.0", "v0.10.0", "v0.11.0-rc1", "vienna"):
        git(repository, "tag", tag)
    rename_a_field(repository)
    commit(repository, "breaks what v0.10.0 promised")
    git(repository, "tag", "v0.12.0")  # would be compared with itself
    done = compare(repository)
    assert done.stdout.startswith("protos: compared with v0.10.0\n")
    assert done.returncode != 0
    assert compare(repository, "HEAD").returncode == 0


@pytest.mark.parametrize("tags", [("v0.1.0",), ()])
def test_a_shallow_clone_with_a_detached_head_knows_the_release(
    repository: Path, tags: tuple[str, ...]
) -> None:
    for tag in tags:
        git(repository, "tag", tag)
    git(repository, "checkout", "--quiet", "-b", "change")
    rename_a_field(repository)
    commit(repository, "breaks")
    clone = repository.parent / "clone"
    git(
        repository.parent,
        *("clone", "--quiet", "--depth=1", "--no-tags", "--branch=change", repository.as_uri(), str(clone)),
    )
    git(clone, "checkout", "--quiet", "--detach")
    git(clone, "branch", "--quiet", "-D", "change")
    done = compare(clone)
    assert done.returncode != 0
    assert "layer_index" in done.stdout
    assert done.stdout.startswith(f"protos: compared with {tags[0]}" if tags else "protos: compared with ")


def test_without_git_it_says_so(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    done = compare(repository)
    assert done.returncode == 0
    assert "no git repository" in done.stderr
    assert compare(repository, "main").returncode == 1


def test_an_unknown_name_is_an_error(repository: Path) -> None:
    done = compare(repository, "nonsense")
    assert done.returncode == 1
    assert "nonsense" in done.stderr

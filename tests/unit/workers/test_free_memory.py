"""How much memory there is for calls: on this machine, and in a container that may have less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tdb_server.workers import free_memory
from tdb_server.workers.free_memory import room_bytes

GIB = 2**30


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without a limit, in one that has none either."""
    monkeypatch.setattr(free_memory, "_own_cgroup", lambda groups: tmp_path / "pod" / "server")
    write(
        tmp_path / "pod" / "server",
        memory__max="max",
        memory__current=GIB // 2,
        memory__stat="inactive_file 0",
    )
    return tmp_path / "pod" / "server"


def test_most_of_what_is_free_is_shared_out(group: Path) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = room_bytes("cpu", 1, is_dealt_out=True)
    assert 0 < room < 0.81 * physical
    assert room_bytes("cpu", 4, is_dealt_out=True) == pytest.approx(room / 4, rel=0.2)  # others live here too


def test_a_container_may_have_less(group: Path) -> None:
    stat = f"anon 7\ninactive_file {GIB // 8}\nactive_file 9"
    write(group, memory__max=GIB, memory__current=GIB // 2, memory__stat=stat)
    assert room_bytes("cpu", 1, is_dealt_out=True) == int(0.8 * (GIB - GIB // 2 + GIB // 8))
    write(group.parent, memory__max=GIB // 4, memory__current=GIB // 8, memory__stat="inactive_file 0")
    assert room_bytes("cpu", 1, is_dealt_out=True) == int(0.8 * GIB // 8)
    write(group.parent, memory__current=GIB)  # over its limit for a moment
    assert room_bytes("cpu", 1, is_dealt_out=True) == 0


def test_containers_of_the_first_version(group: Path) -> None:
    write(group.parent / "memory", memory__limit_in_bytes=GIB, memory__usage_in_bytes=GIB // 2)
    assert room_bytes("cpu", 1, is_dealt_out=True) == int(0.8 * GIB // 2)


@pytest.mark.parametrize(
    ("content", "folder"),
    [("0::/user.slice/a.scope\n", "/sys/fs/cgroup/user.slice/a.scope"), ("0::/\n", "/sys/fs/cgroup")],
)
def test_the_own_control_group(tmp_path: Path, content: str, folder: str) -> None:
    (tmp_path / "cgroup").write_text(content)
    assert free_memory._own_cgroup(tmp_path / "cgroup") == Path(folder)
    assert free_memory._own_cgroup(tmp_path / "none") == Path("/sys/fs/cgroup")

"""A GGUF file that is certainly the same is not read again; one that may have changed is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tdb_server.model import known_files, sources
from tdb_server.model.conversions import kept_conversion
from tdb_server.model.known_files import content_digest
from tdb_server.model.progress import no_progress
from tdb_server.model.sources import resolve_model

from tests.bytes_read import bytes_read

N_BYTES = 8 << 20
DAY = 24 * 3600.0
TICK_SECONDS = 0.02
"""In which the time of a file advances for sure."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; files are known at once, though they have just been written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_files, "SETTLED_SECONDS", -60.0)
    return tmp_path / "cache" / "transformer-debugger"


@pytest.fixture
def file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is read by its digest alone: its conversion says how it begins."""

    def convert(path: Path, folder: Path, progress: object) -> None:
        with path.open("rb") as opened:
            (folder / "config.json").write_bytes(opened.read(5))

    monkeypatch.setattr(sources, "convert_gguf", convert)
    return written(tmp_path / "small.gguf", b"first")


def written(path: Path, start: bytes) -> Path:
    path.write_bytes(start + b"\0" * (N_BYTES - len(start)))
    return path


def start(file: Path, **options: Any) -> tuple[str, int]:
    """What a start finds, and how many times it reads the file."""
    before = bytes_read()
    model = resolve_model(str(file), **options)
    n_times = (bytes_read() - before) / N_BYTES
    assert abs(n_times - round(n_times)) < 0.1
    return (model.path / "config.json").read_text(), round(n_times)


def known(cache: Path) -> Path:
    (path,) = cache.glob("*-known-*")
    return path


def test_a_file_is_read_once_in_all(file: Path) -> None:
    seen: list[tuple[str, float]] = []
    assert start(file, progress=lambda *progress: seen.append(progress)) == ("first", 1)
    assert seen[-1] == ("reading GGUF", 1.0)
    assert seen == sorted(seen)
    for _ in range(2):
        assert start(file) == ("first", 0)


def test_what_is_in_doubt_is_read(file: Path) -> None:
    for _ in range(2):
        assert start(file, is_in_doubt=True) == ("first", 1)
    assert start(file) == ("first", 0)


def test_a_conversion_that_is_gone_is_made_without_another_digest(file: Path, cache: Path) -> None:
    model = resolve_model(str(file))
    shutil.rmtree(model.path)
    assert start(file) == ("first", 0)


def in_place(file: Path, other: Path) -> None:
    times = file.stat()
    time.sleep(TICK_SECONDS)
    with file.open("r+b") as opened:
        opened.write(b"other")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(file: Path, other: Path) -> None:
    shutil.copystat(file, written(other, b"other"))
    other.replace(file)


def by_a_link(file: Path, other: Path) -> None:
    shutil.copystat(file, written(other, b"other"))
    file.unlink()
    file.symlink_to(other)


def longer(file: Path, other: Path) -> None:
    in_place(file, other)
    with file.open("ab") as opened:
        opened.write(b"\0")


@pytest.mark.parametrize("change", [in_place, replaced, by_a_link, longer], ids=lambda one: one.__name__)
def test_another_file_under_the_same_name(
    change: Callable[[Path, Path], None], file: Path, tmp_path: Path
) -> None:
    """Of the same size, but for one, with the time of the last change given back."""
    start(file)
    before = file.stat()
    change(file, tmp_path / "other")
    assert file.stat().st_mtime_ns == before.st_mtime_ns or change is longer
    assert start(file) == ("other", 1)
    assert start(file) == ("other", 0)


def moved(file: Path) -> Path:
    return file.rename(file.with_name("moved.gguf"))


def touched(file: Path) -> Path:
    time.sleep(TICK_SECONDS)
    os.utime(file)
    return file


def copied(file: Path) -> Path:
    copy = file.with_name("copy.gguf")
    shutil.copy2(file, copy)
    copy.replace(file)
    return file


@pytest.mark.parametrize("change", [moved, touched, copied], ids=lambda one: one.__name__)
def test_the_same_content_is_read_once_more_and_not_converted(
    change: Callable[[Path], Path], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(file)
    changed = change(file)
    if change is not moved:  # a conversion is called by its file's name
        monkeypatch.setattr(sources, "convert_gguf", None)
    assert start(changed) == ("first", 1)
    assert start(changed) == ("first", 0)


def test_every_part_of_a_split_file_counts(file: Path, tmp_path: Path) -> None:
    """As in the hub's cache: links with names to files without."""
    for number in (1, 2):
        written(tmp_path / f"blob{number}", b"part%d" % number)
        (tmp_path / f"big-0000{number}-of-00002.gguf").symlink_to(tmp_path / f"blob{number}")
    first = tmp_path / "big-00001-of-00002.gguf"
    assert start(first) == ("part1", 2)
    assert start(first) == ("part1", 0)
    before = resolve_model(str(first)).path
    in_place(tmp_path / "blob2", tmp_path)
    assert start(first) == ("part1", 2)
    assert start(first) == ("part1", 0)
    assert resolve_model(str(first)).path != before


def test_a_file_that_was_just_written_is_not_known_by_its_times(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might be written again before its time advances."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    for _ in range(2):
        content_digest("small", [file], no_progress, is_in_doubt=False)
        assert not list(cache.glob("*"))
    later = time.time() + 60.0
    monkeypatch.setattr(time, "time", lambda: later)
    content_digest("small", [file], no_progress, is_in_doubt=False)
    assert known(cache)


def test_a_file_that_changes_while_it_is_read_is_not_known(file: Path, cache: Path) -> None:
    def change(stage: str, fraction: float) -> None:
        if fraction < 0.5:
            in_place(file, file)

    content_digest("small", [file], change, is_in_doubt=False)
    assert not list(cache.glob("*"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another digit": lambda path: path.write_text(f"{int(path.read_text()[0] != '0')}{path.read_text()[1:]}"),
    "half written": lambda path: os.truncate(path, 70),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(b"\0" * 130),
    "no text": lambda path: path.write_bytes(b"\xff " * 65),
    "large": lambda path: os.truncate(path, 2**40),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_believed(damage: str, file: Path, cache: Path) -> None:
    start(file)
    DAMAGES[damage](known(cache))
    assert start(file) == ("first", 1)
    assert start(file) == ("first", 0)


def test_what_is_known_of_one_file_is_not_believed_of_another(file: Path, cache: Path) -> None:
    start(file)
    of_first = known(cache).read_text()
    in_place(file, file)
    start(file)
    for path in cache.glob("*-known-*"):
        path.write_text(of_first)
    assert start(file) == ("other", 1)


def test_a_cache_that_can_only_be_read(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is used, and what is not is read at every start."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError

    start(file)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert start(file) == ("first", 0)
    known(cache).unlink()
    for _ in range(2):
        assert start(file) == ("first", 1)


def test_what_nobody_uses_goes(file: Path, cache: Path) -> None:
    def grow_old() -> None:
        for path in cache.iterdir():
            os.utime(path, (time.time() - 31 * DAY,) * 2)

    start(file)
    grow_old()
    assert start(file) == ("first", 0)
    assert known(cache)
    grow_old()
    kept = kept_conversion("another", b"1", lambda folder: (folder / "config.json").touch())
    assert list(cache.iterdir()) == [kept.folder]

"""Where conversions are kept, whose they are, and when they go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tdb_server.errors import ModelBroken, ModelError
from tdb_server.model import conversions
from tdb_server.model.conversions import cache_folder, converters_digest, kept_folder

DAY = 24 * 3600.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer-debugger"


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("ours")


def never(folder: Path) -> None:
    raise AssertionError("nothing is to be built")


def set_age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def test_kept_whole_or_not_at_all(cache: Path) -> None:
    def break_off(folder: Path) -> None:
        fill(folder)
        raise ModelBroken("half done")

    with pytest.raises(ModelBroken, match="half done"):
        kept_folder("small", b"1", break_off)
    assert list(cache.iterdir()) == []
    folder = kept_folder("small", b"1", fill)
    assert folder.parent == cache
    assert folder.name.startswith("small-")
    assert kept_folder("small", b"1", never) == folder
    assert kept_folder("small", b"2", fill) != folder


def test_two_processes_that_convert_at_once(cache: Path, tmp_path: Path) -> None:
    final = kept_folder("small", b"1", fill)
    final.rename(tmp_path / "aside")

    def build(folder: Path) -> None:
        fill(folder)
        final.mkdir()
        (final / "config.json").write_text("theirs")

    assert kept_folder("small", b"1", build) == final
    assert (final / "config.json").read_text() == "theirs"
    assert list(cache.iterdir()) == [final]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME"):
        kept_folder("small", b"1", fill)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "transformer-debugger"


def test_what_other_code_has_made_is_not_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept_folder("small", b"1", fill)
    for index, path in enumerate(conversions.CONVERTERS):
        changed = tmp_path / str(index)
        changed.write_bytes(path.read_bytes() + b"\n")
        others = [other for other in conversions.CONVERTERS if other != path]
        monkeypatch.setattr(conversions, "CONVERTERS", (*others[:index], changed, *others[index:]))
        assert kept_folder("small", b"1", fill) != before
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert kept_folder("small", b"1", never) == before


def test_other_versions_of_packages_convert_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = converters_digest()
    monkeypatch.setattr(conversions, "version", lambda package: "0.0" if package == "gguf" else "1.0")
    assert converters_digest() != before


def test_the_converters_are_those_that_write(cache: Path) -> None:
    names = {path.name for path in conversions.CONVERTERS}
    assert names >= {"gguf.py", "gguf_config.py", "gguf_tokenizer.py", "gguf_weights.py", "weight_names.py"}


def test_what_nobody_has_used_for_long_is_removed(cache: Path) -> None:
    old, used, fresh = (kept_folder(name, b"1", fill) for name in ("old", "used", "fresh"))
    set_age(old, 31)
    set_age(used, 31)
    set_age(fresh, 29)
    assert kept_folder("used", b"1", never) == used
    assert sorted(cache.iterdir()) == sorted([used, fresh])
    set_age(fresh, 29)
    kept_folder("used", b"1", never)
    assert fresh.is_dir()


def test_what_broke_off_is_removed_after_a_day(cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, days in ((".unfinished-abc", 1.1), (".unfinished-def", 0.5)):
        (cache / name).mkdir()
        (cache / name / "model.safetensors").write_bytes(b"half")
        set_age(cache / name, days)
    folder = kept_folder("small", b"1", fill)
    assert sorted(cache.iterdir()) == sorted([folder, cache / ".unfinished-def"])


def test_what_is_no_conversion_is_left_alone(cache: Path) -> None:
    (cache / "benchmarks").mkdir(parents=True)
    (cache / "notes.txt").write_text("x")
    for path in cache.iterdir():
        set_age(path, 400)
    kept_folder("small", b"1", fill)
    assert (cache / "benchmarks").is_dir()
    assert (cache / "notes.txt").is_file()


def test_a_cache_that_can_only_be_read_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept_folder("small", b"1", fill)

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)
    assert kept_folder("small", b"1", never) == folder

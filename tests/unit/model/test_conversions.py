"""Where conversions are kept, whose they are, and when they go."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tdb_server.errors import ModelBroken, ModelError
from tdb_server.model import conversions
from tdb_server.model.conversions import PROOF_FILE, cache_folder, converters_digest, kept_conversion
from tdb_server.model.model_files import weights_digest

from tests.random_models import FIXTURES

DAY = 24 * 3600.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer-debugger"


def kept_folder(name: str, content: bytes, build: Callable[[Path], None]) -> Path:
    return kept_conversion(name, content, build).folder


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


def test_another_process_that_does_not_wait_may_finish_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = kept_folder("small", b"1", fill)
    final.rename(tmp_path / "aside")

    def build(folder: Path) -> None:
        fill(folder)
        monkeypatch.setattr(conversions, "LOCK_SECONDS", 0.0)
        kept_folder("small", b"1", fill)

    assert kept_folder("small", b"1", build) == final
    assert (final / "config.json").read_text() == "ours"
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


@pytest.mark.parametrize("other", ["gguf", "transformers", "tokenizers", "sentencepiece", "mistral-common"])
def test_other_versions_of_packages_convert_anew(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "version", lambda _: "1.0")
    before = converters_digest()
    monkeypatch.setattr(conversions, "version", lambda package: "0.0" if package == other else "1.0")
    assert converters_digest() != before


def test_the_converters_are_those_that_write(cache: Path) -> None:
    names = {path.name for path in conversions.CONVERTERS}
    assert names >= {
        "gguf.py",
        "gguf_config.py",
        "gguf_keys.py",
        "gguf_tokenizer.py",
        "gguf_weights.py",
        "weight_names.py",
    }


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


def weights_of(folder: Path) -> None:
    shutil.copytree(
        FIXTURES / "tiny-a",
        folder,
        ignore=shutil.ignore_patterns("autoencoders", "tokenizer*"),
        dirs_exist_ok=True,
    )
    (folder / "tokenizer.json").write_text("{}")


def damaged_in_the_middle(path: Path) -> None:
    """The right length, and no data at the end: as after a power cut."""
    n_bytes = path.stat().st_size
    os.truncate(path, n_bytes * 2 // 3)
    os.truncate(path, n_bytes)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 1000),
    "longer": lambda folder: os.truncate(folder / "model.safetensors", 2**20),
    "missing": lambda folder: (folder / "model.safetensors").unlink(),
    "empty config": lambda folder: os.truncate(folder / "config.json", 0),
    "zeros in the tokenizer": lambda folder: damaged_in_the_middle(folder / "tokenizer.json"),
    "zeros in the proof": lambda folder: damaged_in_the_middle(folder / PROOF_FILE),
    "no proof": lambda folder: (folder / PROOF_FILE).unlink(),
    "a proof of nothing": lambda folder: write(folder / PROOF_FILE, "{}"),
    "a proof that is a list": lambda folder: write(folder / PROOF_FILE, "[]"),
    "a proof of other kinds": lambda folder: write(folder / PROOF_FILE, '{"files": [1], "weights": 5}'),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()] and None,
}


def write(path: Path, text: str) -> None:
    path.write_text(text)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = kept_conversion("small", b"1", weights_of)
    assert kept.weights_digest == weights_digest(kept.folder)
    contents = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
    DAMAGES[damage](kept.folder)
    assert kept_conversion("small", b"1", weights_of) == kept
    assert f"{kept.folder} is damaged and will be made again" in caplog.text
    assert {path.name: path.read_bytes() for path in kept.folder.iterdir()} == contents
    assert list(cache.iterdir()) == [kept.folder]
    assert kept_conversion("small", b"1", never) == kept


def test_weights_are_read_when_they_are_in_doubt(cache: Path) -> None:
    kept = kept_conversion("small", b"1", weights_of)
    damaged_in_the_middle(kept.folder / "model.safetensors")
    assert kept_conversion("small", b"1", never) == kept
    assert kept_conversion("small", b"1", weights_of, is_in_doubt=True) == kept
    assert kept_conversion("small", b"1", never, is_in_doubt=True) == kept


def test_files_that_are_open_stay_as_they_were(cache: Path) -> None:
    kept = kept_conversion("small", b"1", fill)
    with (kept.folder / "config.json").open() as file:
        (kept.folder / PROOF_FILE).unlink()
        kept_conversion("small", b"1", lambda folder: write(folder / "config.json", "new!"))
        assert file.read() == "ours"


def test_two_processes_that_convert_at_once_do_it_once(cache: Path, tmp_path: Path) -> None:
    """Each leaves a file of its own where it converts; the second finds what the first has made."""
    script = (
        "import os, sys, time, pathlib\n"
        "from tdb_server.model.conversions import kept_conversion\n"
        "def build(folder):\n"
        "    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()\n"
        "    (folder / 'config.json').write_text('ours')\n"
        "    time.sleep(1)\n"
        "print(kept_conversion('small', b'1', build).folder)\n"
    )
    done = tmp_path / "done"
    done.mkdir()
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(done)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(folders) == 1
    assert len(list(done.iterdir())) == 1
    assert [path.name for path in cache.iterdir()] == [Path(folders.pop().strip()).name]


def test_a_process_that_is_killed_while_it_converts_hinders_nobody(cache: Path) -> None:
    script = (
        "import os, signal\n"
        "from tdb_server.model.conversions import kept_conversion\n"
        "kept_conversion('small', b'1', lambda folder: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in cache.iterdir())
    assert kept_folder("small", b"1", fill).is_dir()


def test_a_full_disk(cache: Path) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        with open("/dev/full", "w") as full:  # noqa: PTH123 - the system's own full disk
            full.write("x")

    with pytest.raises(ModelError, match=rf"{cache}.*No space left on device.*set XDG_CACHE_HOME"):
        kept_folder("small", b"1", build)
    assert list(cache.iterdir()) == []


def test_a_cache_that_everybody_can_write(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept_folder("small", b"1", fill)
    assert not caplog.text
    cache.chmod(0o777)
    kept_folder("small", b"1", never)
    assert f"{cache} can be written by everybody" in caplog.text

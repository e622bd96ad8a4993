"""Converted weights are proved while they are loaded; what is wrong is converted again, and loaded again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.errors import ModelBroken
from tdb_server.model import gguf, model_loading, sources
from tdb_server.model.decoder import Decoder
from tdb_server.model.model_files import weights_digest
from tdb_server.model.model_loading import load_model
from tdb_server.model.progress import no_progress
from tdb_server.model.sources import ModelFolder, resolve_model
from tdb_server.model.weights import load_decoder

from tests.gguf_models import write_gguf
from tests.random_models import FIXTURES, write_random_model


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_gguf(write_random_model(tmp_path, "llama"), tmp_path / "small.gguf")


def loaded(file: Path, shared_file: int | None = None) -> tuple[ModelFolder, Decoder]:
    return load_model(str(file), "cpu", torch.float32, no_progress, shared_file)


def zeros_at_the_end(path: Path) -> None:
    n_bytes = path.stat().st_size
    os.truncate(path, n_bytes * 2 // 3)
    os.truncate(path, n_bytes)


def not_a_number(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-4:] = b"\xff" * 4
    path.write_bytes(content)


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def another_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"model.norm.weight", b"model.morn.weight"))


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(
    "damage", [zeros_at_the_end, one_bit, not_a_number, another_header], ids=lambda one: one.__name__
)
def test_damaged_weights_are_converted_again(
    damage: Callable[[Path], None], is_shared: bool, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, sound = loaded(file)
    damage(folder.path / "model.safetensors")
    shared_file = os.memfd_create("test-weights") if is_shared else None
    again, decoder = loaded(file, shared_file)
    assert again == folder
    assert "is damaged and will be made again" in caplog.text
    for one, other in zip(sound.weights.tensors(), decoder.weights.tensors(), strict=True):
        assert torch.equal(one, other)
    assert decoder.weights.digest == sound.weights.digest == folder.weights_digest
    if shared_file is not None:
        assert loaded(file, shared_file)[1].weights.digest == folder.weights_digest
        os.close(shared_file)


def test_sound_weights_are_never_in_doubt(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(file)
    monkeypatch.setattr(
        model_loading, "resolve_model", lambda name, progress, check: resolve_model(name, progress)
    )
    monkeypatch.setattr(sources, "convert_gguf", None)
    assert loaded(file)[1].weights.digest


def test_a_disk_that_loses_everything_is_no_reason_to_go_on_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(file)

    def damaging(
        name: str, progress: object, *, is_in_doubt: bool = False, check: object = None
    ) -> ModelFolder:
        folder = resolve_model(name, is_in_doubt=is_in_doubt)
        one_bit(folder.path / "model.safetensors")
        return folder

    monkeypatch.setattr(model_loading, "resolve_model", damaging)
    with pytest.raises(ModelBroken, match="not those that were written"):
        loaded(file)


@pytest.mark.parametrize("fixture", ["tiny-a", "tiny-llama-c"])
def test_the_digest_taken_on_the_way_is_that_of_the_files(fixture: str, tmp_path: Path) -> None:
    folder = FIXTURES / fixture
    digest = load_decoder(folder, "cpu", torch.float32).weights.digest
    assert digest == weights_digest(folder)
    whole = (folder / "config.json").read_bytes() + (folder / "model.safetensors").read_bytes()
    assert digest == hashlib.sha256(whole).hexdigest()


def test_the_digest_covers_what_is_not_copied(tmp_path: Path) -> None:
    """Several files, buffers that nobody uses, numbers without axes, and half precision."""
    folder = write_random_model(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors |= {
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor(1),
    }
    names = sorted(tensors)
    half = {name: tensors[name].bfloat16() for name in names[::2]}
    save_file(half, folder / "a.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, folder / "b.safetensors")
    index = {name: "a.safetensors" if name in half else "b.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {index}}}'.replace("'", '"'))
    assert load_decoder(folder, "cpu", torch.float32).weights.digest == weights_digest(folder)


def test_a_file_that_changes_while_it_is_converted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = gguf.convert_gguf

    def slowly(path: Path, folder: Path, progress: object) -> None:
        convert(path, folder)
        os.utime(path, (0, 0))

    monkeypatch.setattr(sources, "convert_gguf", slowly)
    with pytest.raises(ModelBroken, match=r"small\.gguf: was changed while it was read"):
        loaded(file)
    monkeypatch.undo()


def test_a_file_that_changes_under_the_same_name(file: Path, tmp_path: Path) -> None:
    first = loaded(file)
    write_gguf(write_random_model(tmp_path / "other", "llama", seed=1), file)
    second = loaded(file)
    assert first[0].path != second[0].path
    assert first[1].weights.digest != second[1].weights.digest


def test_a_disk_without_room_is_found_out_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").unlink()
    usage = shutil.disk_usage(file)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"No space left on device: the weights take \d+ bytes, 1000 are free"):
        gguf.convert_gguf(file, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()

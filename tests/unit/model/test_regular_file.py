"""What is opened is a regular file, or a link to one, of a size that its kind may have."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tdb_server.errors import AutoencoderBroken, ModelBroken, ModelError
from tdb_server.model import regular_file
from tdb_server.model.dictionaries.files import read_safetensors, read_state_dict
from tdb_server.model.json_file import read_json_object
from tdb_server.model.model_files import read_config
from tdb_server.model.regular_file import read_regular, refuse_unreadable
from tdb_server.model.sources import resolve_model
from tdb_server.model.weights import load_decoder

from tests.random_models import FIXTURES


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # the whole path may be too long


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[Callable[[Path], None], str] = {
    make_fifo: "a FIFO, not a regular file",
    make_folder: "a folder, not a regular file",
    make_socket: "a socket, not a regular file",
    link_to_device: "a device, not a regular file",
    link_to_nowhere: "a link to .*gone, which cannot be reached",
    link_to_itself: "a link to .*, which cannot be reached",
}
"""Ways to make what is no regular file, and what it is called."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(
        shutil.copytree(
            FIXTURES / "tiny-a", tmp_path / "model", ignore=shutil.ignore_patterns("autoencoders")
        )
    )


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_what_is_no_regular_file_is_called_by_its_kind(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "one")
    for read in (refuse_unreadable, lambda path: read_regular(path, 10)):
        with pytest.raises(ModelBroken, match=f"one: {KINDS[make]}"):
            read(tmp_path / "one")


def test_what_becomes_a_fifo_after_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regular_file, "refuse_unreadable", lambda *_: None)
    make_fifo(tmp_path / "one")
    with pytest.raises(ModelBroken, match="one: a FIFO"):
        read_regular(tmp_path / "one", 10)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.json"])
def test_no_file_of_a_model_may_be_such(
    name: str, make: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ModelError, match=rf"model/{name}: {KINDS[make]}"):
        load_decoder(resolve_model(str(folder)).path, "cpu", torch.float32)


@pytest.mark.parametrize("make", [make_fifo, link_to_device, link_to_nowhere], ids=lambda make: make.__name__)
def test_a_gguf_file_that_is_none(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(ModelBroken, match=rf"m\.gguf: {KINDS[make]}"):
        resolve_model(str(tmp_path / "m.gguf"))


def test_an_index_that_is_none(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    with pytest.raises(ModelBroken, match=r"index\.json: a FIFO"):
        load_decoder(folder, "cpu", torch.float32)


def test_autoencoders_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.safetensors")
    with pytest.raises(AutoencoderBroken, match="a FIFO"):
        read_safetensors(tmp_path / "0.safetensors")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(AutoencoderBroken, match="a FIFO"):
        read_json_object(tmp_path / "config.json")


def test_a_packed_state_dict_is_not_unpacked(tmp_path: Path) -> None:
    """A gigabyte of zeros is a megabyte when it is packed."""
    import zipfile

    torch.save({"pre_bias": torch.zeros(100_000)}, tmp_path / "0.pt")
    assert read_state_dict(tmp_path / "0.pt")["pre_bias"].numel() == 100_000
    with (
        zipfile.ZipFile(tmp_path / "0.pt") as plain,
        zipfile.ZipFile(tmp_path / "1.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(AutoencoderBroken, match=r"1\.pt: holds \d+ bytes, more than it is long"):
        read_state_dict(tmp_path / "1.pt")


@pytest.fixture
def state_dict(tmp_path: Path) -> Path:
    path = tmp_path / "0.pt"
    torch.save({"pre_bias": torch.arange(100_000.0), "latent_bias": torch.ones(3)}, path)
    return path


def test_a_byte_that_has_changed_is_found(state_dict: Path) -> None:
    """Torch itself reads another number there."""
    content = bytearray(state_dict.read_bytes())
    content[len(content) // 2] ^= 1
    state_dict.write_bytes(content)
    assert not torch.equal(torch.load(state_dict)["pre_bias"], torch.arange(100_000.0))
    with pytest.raises(AutoencoderBroken, match=r"0\.pt: damaged: Bad CRC-32 for file '0/data/0'"):
        read_state_dict(state_dict)


def test_files_without_checksums_are_read(state_dict: Path) -> None:
    """As torch writes them when it is told to."""
    expected = read_state_dict(state_dict)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(expected, state_dict)
    finally:
        torch.serialization.set_crc32_options(before)
    torch.testing.assert_close(read_state_dict(state_dict), expected, rtol=0, atol=0)


def test_links_to_regular_files_are_followed(folder: Path, tmp_path: Path) -> None:
    """Hugging Face's cache consists of them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    load_decoder(resolve_model(str(linked)).path, "cpu", torch.float32)


def test_sizes_are_bounded_before_anything_is_read(folder: Path) -> None:
    os.truncate(folder / "config.json", regular_file.MAX_JSON_BYTES + 1)
    with pytest.raises(ModelBroken, match=r"config\.json: 16777217 bytes long; files of this kind may have"):
        read_config(folder)


def test_a_tokenizer_of_gigabytes(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 10 * 2**30)  # a hole takes no room
    with pytest.raises(ModelBroken, match=r"tokenizer\.json: 10737418240 bytes long"):
        resolve_model(str(folder))


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, json.dumps({"a": 1})[:-1] + ',"n":' + "9" * 5000 + "}"]
)
def test_json_that_would_exhaust_the_stack_or_the_processor(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelBroken, match=r"config\.json: cannot be read as JSON"):
        read_config(folder)

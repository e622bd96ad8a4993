"""GGUF files as such: versions, damage, and models split into several files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tdb_server.errors import ModelBroken, ModelError, ModelNotFound, UnsupportedModel
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.gguf_file import model_name, read_gguf
from tdb_server.model.weights import load_decoder

from tests.gguf_models import Kind, write_gguf
from tests.random_models import reference_model, write_random_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("original"), "llama")


@pytest.fixture(scope="module")
def whole(original: Path) -> bytes:
    return write_gguf(original, original / "whole.gguf").read_bytes()


@pytest.fixture
def split(original: Path, tmp_path: Path) -> list[Path]:
    """Three parts of one model."""
    write_gguf(original, tmp_path / "m.gguf", split_max_tensors=11)
    return sorted(tmp_path.glob("*.gguf"))


def refusal(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_gguf(path)
    assert caught.value.message.startswith(str(path.parent))
    return caught.value.message


# What is no whole file of a known version


@pytest.mark.parametrize("n_bytes", [0, 3, 7, 8, 20, 100, 30_000, 60_000, 100_000, -1])
def test_files_that_were_cut_off(tmp_path: Path, whole: bytes, n_bytes: int) -> None:
    end = n_bytes % len(whole)
    message = refusal(tmp_path / "cut.gguf", whole[:end])
    assert ("does not start with GGUF" if n_bytes < 8 and n_bytes >= 0 else "cut off") in message


def test_a_cut_names_the_tensor(tmp_path: Path, whole: bytes) -> None:
    message = refusal(tmp_path / "cut.gguf", whole[:-40])
    assert f"ends after {len(whole) - 40} bytes, but output_norm.weight ends at {len(whole)}" in message


def test_an_array_that_claims_to_be_endless(tmp_path: Path, whole: bytes) -> None:
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    content = whole[:at] + struct.pack("<Q", 2**60) + whole[at + 8 : at + 4096]
    message = refusal(tmp_path / "long.gguf", content)
    assert "not a readable GGUF file" in message


@pytest.mark.parametrize("version", [0, 1, 4, 99])
def test_other_versions(tmp_path: Path, whole: bytes, version: int) -> None:
    content = whole[:4] + struct.pack("<I", version) + whole[8:]
    assert f"version {version} of GGUF is not read; 2 and 3 are" in refusal(tmp_path / "m.gguf", content)


def test_version_2_is_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:4] + struct.pack("<I", 2) + whole[8:])
    assert len(read_gguf(path).tensors) == 3 * 9 + 3


def test_big_endian_files(original: Path, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "m.gguf", endianess=gguf.GGUFEndian.BIG)
    assert "a big-endian GGUF file" in refusal(path)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    assert "not a GGUF file" in refusal(tmp_path / "m.gguf", b"ggml" + bytes(100))
    with pytest.raises(ModelBroken, match="cannot be read"):
        read_gguf(tmp_path)


def test_alignment_is_the_files_own(original: Path, tmp_path: Path) -> None:
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_custom_alignment(256))
    read = read_gguf(path).tensors["blk.1.ffn_norm.weight"].data.view(np.float32)
    plain = read_gguf(write_gguf(original, tmp_path / "n.gguf")).tensors["blk.1.ffn_norm.weight"]
    np.testing.assert_array_equal(read, plain.data.view(np.float32))


@pytest.mark.parametrize(
    ("kind", "name"), [(Kind.Q8_1, "Q8_1"), (Kind.I8, "I8"), (4, "type 4"), (9999, "type 9999")]
)
def test_kinds_that_cannot_be_dequantized(tmp_path: Path, whole: bytes, kind: int, name: str) -> None:
    at = whole.index(b"blk.1.attn_output.weight") + len(b"blk.1.attn_output.weight") + 4 + 16
    assert struct.unpack("<I", whole[at : at + 4]) == (0,)
    content = whole[:at] + struct.pack("<I", kind) + whole[at + 4 :]
    message = refusal(tmp_path / "m.gguf", content)
    assert f"blk.1.attn_output.weight is stored as {name}, not read here" in message


def test_two_tensors_in_one_place(tmp_path: Path, whole: bytes) -> None:
    at = whole.index(b"blk.1.attn_output.weight") + len(b"blk.1.attn_output.weight") + 4 + 16 + 4
    content = whole[:at] + struct.pack("<Q", 0) + whole[at + 8 :]
    message = refusal(tmp_path / "m.gguf", content)
    assert "blk.1.attn_output.weight" in message
    assert "lie in the same place" in message


def test_one_tensor_twice(tmp_path: Path, whole: bytes) -> None:
    content = whole.replace(b"blk.1.ffn_gate.weight", b"blk.0.ffn_gate.weight")
    assert "tensor blk.0.ffn_gate.weight is there twice" in refusal(tmp_path / "m.gguf", content)


def test_one_key_twice(tmp_path: Path, whole: bytes) -> None:
    content = whole.replace(b"llama.context_length", b"general.architecture")
    assert "Duplicate general.architecture" in refusal(tmp_path / "m.gguf", content)


def test_old_quantizations(original: Path, tmp_path: Path) -> None:
    path = write_gguf(
        original, tmp_path / "m.gguf", kind=Kind.Q8_0, edit=lambda w: w.add_quantization_version(1)
    )
    assert "general.quantization_version is 1; only 2 is read" in refusal(path)


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_files_that_are_no_model(original: Path, tmp_path: Path, kind: str) -> None:
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_type(kind))
    assert f"general.type is '{kind}'; only whole models are served" in refusal(path)


# Models split into several files


def test_a_split_model_is_read_whole(original: Path, tmp_path: Path, split: list[Path]) -> None:
    assert [path.name for path in split] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert model_name(split[0]) == "m"
    target = tmp_path / "converted"
    target.mkdir()
    convert_gguf(split[0], target)
    ids = torch.arange(20)[None] * 11
    decoder = load_decoder(target, "cpu", torch.float32)
    with torch.no_grad():
        expected = reference_model(original)(ids).logits
    ours = decoder.logits(decoder.forward(decoder.embed(ids)))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_links_keep_the_names_of_parts(tmp_path: Path, split: list[Path]) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for number, path in enumerate(split):
        path.rename(tmp_path / f"blob{number}")
        (links / path.name).symlink_to(tmp_path / f"blob{number}")
    assert len(read_gguf(links / split[0].name).tensors) == 3 * 9 + 3


def test_a_missing_part(split: list[Path]) -> None:
    split[1].unlink()
    with pytest.raises(ModelNotFound, match=r"m-00001-of-00003\.gguf: m-00002-of-00003\.gguf is missing"):
        read_gguf(split[0])


def test_a_later_part_is_not_the_model(split: list[Path]) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"this is part 3 of 3; name the first one, .*m-00001-of-00003\.gguf"
    ):
        read_gguf(split[2])


def test_parts_under_other_names(split: list[Path]) -> None:
    renamed = split[0].rename(split[0].with_name("model.gguf"))
    assert "part 1 of 3, so it must be called NAME-00001-of-00003.gguf" in refusal(renamed)
    swapped = split[1].rename(split[1].with_name("m-00001-of-00003.gguf"))
    assert "part 2 of 3, so it must be called NAME-00002-of-00003.gguf" in refusal(swapped)


def test_parts_of_two_models(original: Path, tmp_path: Path, split: list[Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_gguf(original, other / "m.gguf", split_max_tensors=16)  # two parts
    (other / "m-00002-of-00002.gguf").replace(split[1])
    assert "m-00002-of-00003.gguf: split.count is 2, but by the first part" in refusal(split[0])
    write_gguf(original, split[1])
    assert "m-00002-of-00003.gguf: split.no is missing, so this is not part 2 of 3" in refusal(split[0])


def test_a_part_twice(split: list[Path]) -> None:
    split[2].write_bytes(split[1].read_bytes())
    assert "m-00003-of-00003.gguf: split.no is 1, but by the first part" in refusal(split[0])


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("split.odd", 1, r"key split\.odd is not known"),
        ("split.no", 1, r"split\.no is 1, but split\.count is 1"),
        ("split.tensors.count", 12, r"split\.tensors\.count is 12, but 30 tensors are there"),
    ],
)
def test_keys_of_parts_in_a_whole_file(
    original: Path, tmp_path: Path, key: str, value: int, what: str
) -> None:
    path = write_gguf(original, tmp_path / "m.gguf", edit=lambda w: w.add_uint16(key, value))
    with pytest.raises(ModelError, match=what):
        read_gguf(path)


def test_a_file_that_is_split_into_one(original: Path, tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 1)

    path = write_gguf(original, tmp_path / "m-00001-of-00001.gguf", edit=edit)
    assert len(read_gguf(path).tensors) == 3 * 9 + 3
    assert model_name(path) == "m"

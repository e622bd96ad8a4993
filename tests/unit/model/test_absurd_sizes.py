"""What a model claims is compared with what its files hold before anything is allocated."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tdb_server.errors import ModelBroken, ModelError, UnsupportedModel
from tdb_server.model.gguf_file import MAX_ENTRIES, read_gguf
from tdb_server.model.positions import MIN_ROTARY_TOKENS, LayerKind, Positions
from tdb_server.model.rotary import rotary_frequencies
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.random_models import FIXTURES

MAX_BYTES = 2**20
"""More than any tensor of the fixtures has."""


class NothingLarge(TorchDispatchMode):
    """Fails when a tensor is made that is larger than `MAX_BYTES`."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            assert made.untyped_storage().nbytes() <= MAX_BYTES, function
        return made


@pytest.fixture(autouse=True)
def nothing_large() -> Iterator[None]:
    with NothingLarge():
        yield


def model(tmp_path: Path, fixture: str, **config: object) -> Path:
    """A fixture with other numbers in its configuration."""
    folder = Path(
        shutil.copytree(FIXTURES / fixture, tmp_path / "model", ignore=shutil.ignore_patterns("autoencoders"))
    )
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(found | config))
    return folder


@pytest.mark.parametrize(
    ("fixture", "config", "told"),
    [
        ("tiny-a", {"n_layer": 10**9}, r"no tensor h\.\d\."),
        ("tiny-a", {"vocab_size": 2**31 - 1}, r"wte\.weight has shape .*; config.json demands"),
        ("tiny-a", {"vocab_size": 10**12}, "vocab_size must be at most 2147483647"),
        ("tiny-a", {"vocab_size": 2**63}, "vocab_size must be at most 2147483647"),
        ("tiny-a", {"n_embd": 10**10, "n_head": 5}, "n_embd must be at most 2147483647"),
        ("tiny-a", {"n_embd": 2**31 - 1, "n_head": 1}, "config.json demands"),
        ("tiny-a", {"n_positions": 2**31 - 1}, "wpe.weight has shape"),
        ("tiny-a", {"n_inner": 2**31 - 1}, "config.json demands"),
        ("tiny-llama-c", {"num_attention_heads": 2**30}, "config.json"),
        ("tiny-llama-c", {"head_dim": 2**31 - 2}, "heads of 2147483646 channels"),
        ("tiny-llama-c", {"intermediate_size": 2**31 - 1}, "config.json demands"),
        ("tiny-llama-c", {"max_position_embeddings": 3 * 10**9}, "max_position_embeddings must be at most"),
        ("tiny-llama-c", {"num_hidden_layers": 10**400}, "num_hidden_layers must be at most"),
        ("tiny-llama-c", {"rms_norm_eps": 10**400}, "rms_norm_eps must be a number above 0"),
    ],
)
def test_counts_that_no_file_has_room_for(
    fixture: str, config: dict[str, object], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelBroken, match=told):
        load_decoder(model(tmp_path, fixture, **config), "cpu", torch.float32)


@pytest.mark.parametrize(
    "rotary",
    [
        '"rope_theta": 1e400',
        '"rope_theta": 1e39',
        '"rope_parameters": {"rope_type": "linear", "factor": 1e300}',
        '"rope_parameters": {"rope_type": "linear", "factor": "y"}',
        '"rope_parameters": {"rope_type": ["x"], "factor": 2.0}',
    ],
)
def test_rotations_that_make_no_sense(rotary: str, tmp_path: Path) -> None:
    folder = model(tmp_path, "tiny-llama-c")
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_theta", "rope_parameters", "rope_scaling"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps(config)[:-1] + f", {rotary}}}")
    with pytest.raises((ModelBroken, UnsupportedModel), match=r"config\.json|rotary"):
        load_decoder(folder, "cpu", torch.float32)


def test_a_table_of_angles_is_as_long_as_prompts_are(tmp_path: Path) -> None:
    decoder = load_decoder(
        model(tmp_path, "tiny-llama-c", max_position_embeddings=2 * 10**9), "cpu", torch.float32
    )
    short = load_decoder(FIXTURES / "tiny-llama-c", "cpu", torch.float32)
    token_ids = torch.arange(60)[None]
    assert torch.equal(*(one.forward(one.embed(token_ids)) for one in (decoder, short)))
    rotary = decoder.config.rotary
    assert rotary is not None
    positions = Positions(decoder.config, LayerKind(None, rotary), decoder.device)
    for n_tokens in (3, MIN_ROTARY_TOKENS, MIN_ROTARY_TOKENS + 1, 3000, 5):
        cosine, sine = positions.turns(slice(n_tokens), torch.float32)
        assert isinstance(cosine, Tensor)
        assert sine is not None
        expected = rotary_frequencies(rotary, n_tokens, decoder.device)
        assert torch.equal(cosine, expected[0] * decoder.config.d_head**-0.25)
        assert torch.equal(sine, expected[1] * decoder.config.d_head**-0.25)


def header(n_bytes: int, content: bytes) -> bytes:
    return struct.pack("<Q", n_bytes) + content


@pytest.mark.parametrize(
    "content",
    [
        header(2**60, b"{}"),
        header(90, b"{}"),
        header(2, b"{}") + b"more",
        header(2**20, b"[" * 2**20),
        b"",
    ],
)
def test_headers_of_safetensors_that_lie(content: bytes, tmp_path: Path) -> None:
    folder = model(tmp_path, "tiny-a")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"model\.safetensors.*: not a readable safetensors file|no tensor"):
        load_decoder(folder, "cpu", torch.float32)


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf_bytes(n_keys: int, n_tensors: int, body: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + body


def array(kind: int, count: int, entries: bytes) -> bytes:
    return text(b"a") + struct.pack("<IIQ", 9, kind, count) + entries


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gguf_bytes(2**60, 0, b""), "it claims to have 1152921504606846976 keys"),
        (gguf_bytes(0, 2**60, b""), "it claims to have 1152921504606846976 tensors"),
        (gguf_bytes(1, 0, array(0, 10**9, b"")), "it claims to have 1000000000 entries of an array"),
        (gguf_bytes(1, 0, array(0, MAX_ENTRIES + 1, bytes(MAX_ENTRIES + 1))), "entries of an array"),
        (gguf_bytes(1, 0, array(8, 10**6, bytes(10))), "cut off"),
        (gguf_bytes(1, 0, array(8, 2, struct.pack("<QQ", 2**62, 0))), "cut off"),
        (gguf_bytes(1, 0, array(10, 10**6, bytes(10))), "cut off"),
        (gguf_bytes(1, 0, array(9, 1, struct.pack("<IQ", 9, 1) * 5000)), "an array of ARRAY"),
        (gguf_bytes(0, 1, text(b"t") + struct.pack("<I", 2**31) + bytes(2**16)), "cut off"),
        (gguf_bytes(0, 1, text(b"t") + struct.pack("<I", 2**12) + bytes(2**16)), "4096 axes"),
        (gguf_bytes(0, 1, text(b"t") + struct.pack("<I4QIQ", 4, *[2**40] * 3, 1, 0, 0)), "was cut off"),
    ],
)
def test_counts_of_gguf_files_that_lie(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=told):
        read_gguf(tmp_path / "m.gguf")


def test_arrays_are_read_whole(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored: dict[str, list[Any]] = {
        "a.texts": ["", "x", "ä b"],
        "a.numbers": [1.5, -2.0],
        "a.flags": [True, False],
        "a.counts": [3] * 10,
    }
    for name, values in stored.items():
        writer.add_array(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "m.gguf").metadata
    assert {name: found[name] for name in stored} == stored


def test_token_ids_far_behind_the_others(tmp_path: Path) -> None:
    content = json.loads((FIXTURES / "tiny-a" / "tokenizer.json").read_text())
    content["model"]["vocab"]["zzz"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token_strings([2**32 - 1, 2**32 - 2, 2**32, -1]) == [
        "zzz",
        "<unused 4294967294>",
        "<unused 4294967296>",
        "<unused -1>",
    ]

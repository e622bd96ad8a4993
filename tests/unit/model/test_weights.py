"""What a model folder may look like, and what is said of one that is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.errors import ModelBroken, ModelNotFound, UnsupportedModel
from tdb_server.model.decoder import Decoder
from tdb_server.model.model_files import weights_digest
from tdb_server.model.weights import load_decoder
from torch import Tensor

from tests.random_models import FIXTURES, write_random_model

Tensors = dict[str, Tensor]
IDS = torch.arange(12)[None] * 7


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "llama", "llama")


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "gpt2", "gpt2")


def load(folder: Path) -> Decoder:
    return load_decoder(folder, "cpu", torch.float32)


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    decoder = load(folder)
    return decoder.logits(decoder.forward(decoder.embed(IDS)))


def edit_tensors(folder: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("fixture", ["tiny-a", "tiny-llama-c"])
def test_the_shipped_fixtures_load(fixture: str) -> None:
    assert logits(FIXTURES / fixture).shape == (1, 12, 1000)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_names_without_the_models_prefix(tmp_path: Path, family: str) -> None:
    folder = write_random_model(tmp_path, family)
    expected = logits(folder)
    names: list[str] = []

    def shorten(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.").removeprefix("model.")] = tensors.pop(name)
        names.extend(tensors)

    edit_tensors(folder, shorten)
    assert not any(name.startswith(("transformer.", "model.")) for name in names)
    assert torch.equal(logits(folder), expected)


def test_weights_in_several_files(llama: Path) -> None:
    expected = logits(llama)
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for i, name in enumerate(sorted(tensors)):
        index[name] = f"model-0000{i % 2 + 1}-of-00002.safetensors"
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, llama / file)
    with pytest.raises(ModelBroken, match="several safetensors files"):
        load(llama)
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(logits(llama), expected)

    (llama / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelBroken, match=r"model-00002-of-00002\.safetensors.*missing"):
        load(llama)
    (llama / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelBroken, match=r"index\.json: not a JSON object"):
        load(llama)


def test_half_precision_files_are_widened(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    assert load(llama).dtype == torch.float32


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_type_may_be_that_of_the_files(llama: Path, stored: torch.dtype, computed: torch.dtype) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:  # norms often have a type of their own
        tensors.update({n: t.float() if "norm" in n else t.to(stored) for n, t in tensors.items()})

    edit_tensors(llama, change)
    decoder = load_decoder(llama, "cpu", None)
    assert decoder.dtype == computed
    assert {one.dtype for one in (decoder.weights.unembedding, decoder.weights.final_norm.gain)} == {computed}


def test_progress_ends_at_one(llama: Path) -> None:
    seen: list[tuple[str, float]] = []
    load_decoder(llama, "cpu", torch.float32, lambda stage, fraction: seen.append((stage, fraction)))
    assert seen[0] == ("loading weights", 0.0)
    assert seen[-1] == ("loading weights", 1.0)


def test_buffers_of_old_files_are_left_alone(gpt2: Path, llama: Path) -> None:
    buffers = {
        gpt2: {
            "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        },
        llama: {
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            "model.rotary_emb.inv_freq": torch.ones(4),
        },
    }
    for folder, extra in buffers.items():
        expected = logits(folder)
        edit_tensors(folder, lambda tensors, extra=extra: tensors.update(extra))
        assert torch.equal(logits(folder), expected)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"nowhere: no such folder") as caught:
        load(tmp_path / "nowhere")
    assert caught.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no config.json"), ("{", "JSON"), ("[]", "JSON object")]
)
def test_broken_config(llama: Path, content: str | None, message: str) -> None:
    (llama / "config.json").unlink()
    if content is not None:
        (llama / "config.json").write_text(content)
    with pytest.raises(ModelBroken, match=message):
        load(llama)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_broken_safetensors(llama: Path, content: bytes) -> None:
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelBroken, match=r"model\.safetensors: not a readable safetensors file"):
        load(llama)


def test_cut_off_safetensors(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelBroken, match=r"model\.safetensors: not a readable safetensors file"):
        load(llama)


def test_pickled_weights_are_never_opened(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelBroken, match="there are no weights"):
        load(llama)

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (llama / "exploded",)

    torch.save(Bomb(), llama / "pytorch_model.bin")
    with pytest.raises(ModelBroken, match=r"pytorch_model\.bin: pickled .* convert it once"):
        load(llama)
    assert not (llama / "exploded").exists()


def test_missing_tensor(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight"))
    with pytest.raises(ModelBroken, match=r"model\.safetensors.*layers\.1\.self_attn\.k_proj\.weight"):
        load(llama)


def test_missing_bias(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path, "qwen2")
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias"))
    with pytest.raises(ModelBroken, match=r"q_proj\.bias"):
        load(folder)


def test_tensor_without_a_place(llama: Path) -> None:
    edit_config(llama, num_hidden_layers=2)
    with pytest.raises(ModelBroken, match=r"layers\.2\..* has no place in the llama model of 2 layers"):
        load(llama)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"hidden_size": 16}, r"embed_tokens\.weight has shape \[1000, 32\]; .* \[1000, 16\]"),
        ({"num_key_value_heads": 1}, r"k_proj\.weight has shape \[16, 32\]; .* \[8, 32\]"),
        ({"intermediate_size": 50}, r"gate_proj\.weight has shape"),
    ],
)
def test_wrong_shape(llama: Path, entries: dict[str, object], message: str) -> None:
    edit_config(llama, **entries)
    with pytest.raises(ModelBroken, match=message):
        load(llama)


def test_gpt2_matrices_that_were_turned_already(gpt2: Path) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    edit_tensors(gpt2, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(ModelBroken, match=r"c_fc\.weight has shape \[128, 32\]"):
        load(gpt2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(llama: Path, value: float) -> None:
    edit_tensors(llama, lambda tensors: tensors["model.norm.weight"].__setitem__(3, value))
    with pytest.raises(ModelBroken, match=r"model\.norm\.weight holds values that are not finite"):
        load(llama)


def test_values_beyond_half_precision(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors["model.norm.weight"].__setitem__(3, 1e5))
    with pytest.raises(ModelBroken, match=r"not finite as torch\.float16"):
        load_decoder(llama, "cpu", torch.float16)


def test_large_values_are_finite(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors["model.norm.weight"].fill_(3e38))  # their sum overflows
    load(llama)


def test_integers_are_no_weights(llama: Path) -> None:
    edit_tensors(
        llama, lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    )
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight is stored as I8, not as floating point"):
        load(llama)


def test_unknown_rotary_scaling_is_refused_before_weights_are_read(llama: Path) -> None:
    edit_config(llama, rope_parameters={"rope_type": "yarn", "factor": 4.0})
    (llama / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="'yarn'"):
        load(llama)


def test_digest_follows_weights_and_config(llama: Path) -> None:
    first = weights_digest(llama)
    assert len(first) == 64
    assert weights_digest(llama) == first
    (llama / "tokenizer.json").unlink()
    assert weights_digest(llama) == first
    edit_config(llama, rms_norm_eps=1e-3)
    second = weights_digest(llama)
    edit_tensors(llama, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert len({first, second, weights_digest(llama)}) == 3

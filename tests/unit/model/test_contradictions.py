"""Folders that say one thing in two places: as transformers has it, with a line in the log, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model import checkpoint
from tdb_server.model.weights import load_decoder
from torch import Tensor

from tests.random_models import FAMILIES, reference_model, write_random_model

Tensors = dict[str, Tensor]
IDS = torch.arange(40)[None] * 7
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "rope_theta": 100.0,
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
STALE = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "llama", "llama")


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    decoder = load_decoder(folder, "cpu", torch.float32)
    return decoder.cap(decoder.logits(decoder.forward(decoder.embed(IDS))))


@torch.no_grad()
def assert_as_transformers(folder: Path) -> None:
    expected: Tensor = reference_model(folder)(IDS).logits
    torch.testing.assert_close(logits(folder), expected, atol=1e-4, rtol=1e-4)


def edit_tensors(folder: Path, edit: Callable[[Tensors], object], file: str = "model.safetensors") -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
    edit(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})


def edit_config(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def split(folder: Path, *, assigned: dict[str, str] | None = None, also: tuple[str, ...] = ()) -> None:
    """Divides the weights into two files; `also` are in both, and the index says `assigned` of some."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: FIRST if at < len(names) // 2 else SECOND for at, name in enumerate(names)}
    for file in (FIRST, SECOND):
        chosen = {name: tensors[name] for name in names if places[name] == file or name in also}
        save_file(chosen, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places | (assigned or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_embeddings_that_are_stored_with_different_values(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_random_model(tmp_path, family, tie_word_embeddings=True)
    tied = logits(folder)
    head = 0.3 * torch.randn(1000, 32, generator=torch.Generator().manual_seed(7))
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert_as_transformers(folder)
    assert not torch.allclose(logits(folder), tied, atol=0.1)
    assert "lm_head.weight in model.safetensors differ: they are not tied" in caplog.text


@pytest.mark.parametrize("n_compared_at_a_time", [100, 1 << 22])
def test_tied_embeddings_that_differ_in_one_number_of_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_compared_at_a_time: int
) -> None:
    monkeypatch.setattr(checkpoint, "_COMPARED_ELEMENTS", n_compared_at_a_time)
    folder = write_random_model(tmp_path, "llama", tie_word_embeddings=True)
    tied = logits(folder)

    def add_head(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1

    edit_tensors(folder, add_head)
    found = logits(folder)
    assert torch.equal(found[..., :-1], tied[..., :-1])
    assert not torch.equal(found[..., -1], tied[..., -1])


def test_tied_embeddings_that_are_stored_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_random_model(tmp_path, "gpt2", tie_word_embeddings=True)
    tied = logits(folder)
    edit_tensors(folder, lambda one: one.update({"lm_head.weight": one["transformer.wte.weight"].clone()}))
    decoder = load_decoder(folder, "cpu", torch.float32)
    assert decoder.weights.unembedding is decoder.weights.token_embedding
    assert torch.equal(logits(folder), tied)
    assert not caplog.records


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tied_embeddings_of_which_the_head_alone_is_stored(tmp_path: Path, family: str) -> None:
    folder = write_random_model(tmp_path, family, tie_word_embeddings=True)
    tied = logits(folder)
    save_model(reference_model(folder), str(folder / "model.safetensors"), metadata={"format": "pt"})
    stored = load_file(folder / "model.safetensors")
    assert "lm_head.weight" in stored
    assert not any("wte" in name or "embed_tokens" in name for name in stored)
    assert torch.equal(logits(folder), tied)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.bias",
        "model.norm.bias",
        "model.embed_positions.weight",
        "score.weight",
        "v_head.summary.weight",
        "model.layers.3.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.0.mlp.down_proj.bias",
    ],
)
def test_a_tensor_that_is_not_read_is_refused_by_name(llama: Path, name: str) -> None:
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.zeros(32)}))
    with pytest.raises(ModelBroken) as caught:
        load_decoder(llama, "cpu", torch.float32)
    assert f"tensor {name} in model.safetensors has no place in the llama model of 3 layers" in str(
        caught.value
    )


@pytest.mark.parametrize("wrapper", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}"])
def test_names_of_wrapped_models(llama: Path, wrapper: str) -> None:
    expected = logits(llama)
    edit_tensors(llama, lambda one: [one.update({wrapper.format(name): one.pop(name)}) for name in list(one)])
    assert torch.equal(logits(llama), expected)


def test_layers_that_were_compiled_one_by_one(llama: Path) -> None:
    expected = logits(llama)

    def rename(tensors: Tensors) -> None:
        for name in [one for one in tensors if ".layers." in one]:
            model, layers, index, rest = name.split(".", 3)
            tensors[f"{model}.{layers}.{index}._orig_mod.{rest}"] = tensors.pop(name)

    edit_tensors(llama, rename)
    assert torch.equal(logits(llama), expected)


def test_one_tensor_under_two_names(llama: Path) -> None:
    expected = logits(llama)
    edit_tensors(llama, lambda one: one.update({"norm.weight": one["model.norm.weight"].clone()}))
    assert torch.equal(logits(llama), expected)
    edit_tensors(llama, lambda one: one["norm.weight"].add_(1))
    with pytest.raises(
        ModelBroken, match=r"model\.norm\.weight in .* and norm\.weight in .* different values"
    ):
        logits(llama)


def test_the_single_file_goes_before_the_index(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = load_file(llama / "model.safetensors")
    split(llama)
    save_file(tensors | {STALE: tensors[STALE] + 1}, llama / "model.safetensors", metadata={"format": "pt"})
    assert_as_transformers(llama)
    assert f"model.safetensors is read, not {FIRST}, {SECOND}, model.safetensors.index.json" in caplog.text


def test_files_that_the_index_does_not_name(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = logits(llama)
    split(llama)
    save_file({STALE: torch.zeros(48, 32)}, llama / "model-00003-of-00003.safetensors")
    assert torch.equal(logits(llama), expected)
    assert "not model-00003-of-00003.safetensors" in caplog.text


@pytest.mark.parametrize("stale_file", [FIRST, SECOND])
def test_a_stale_copy_in_another_shard(llama: Path, stale_file: str) -> None:
    expected = logits(llama)
    split(llama, also=(STALE,))
    assert torch.equal(logits(llama), expected)  # equal copies
    edit_tensors(llama, lambda tensors: tensors[STALE].add_(1), stale_file)
    with pytest.raises(ModelBroken, match=f"{STALE} in {FIRST} and {STALE} in {SECOND} are one tensor"):
        logits(llama)


def test_a_tensor_elsewhere_than_the_index_says(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    split(llama, assigned={STALE: SECOND, "model.gone.weight": FIRST})
    assert_as_transformers(llama)
    assert f"assigns {STALE} to {SECOND}, and it is in {FIRST} (2 tensors in all" in caplog.text


def test_a_tensor_that_the_index_does_not_know(llama: Path) -> None:
    split(llama)
    index = llama / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {one: places[one] for one in places if one != STALE}})
    )
    assert_as_transformers(llama)
    edit_tensors(llama, lambda tensors: tensors.update({"model.more.weight": torch.zeros(3)}), SECOND)
    with pytest.raises(ModelBroken, match=rf"tensor model\.more\.weight in {SECOND} has no place"):
        logits(llama)


@pytest.mark.parametrize("adapter", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("has_model", [True, False])
def test_adapters_are_refused(llama: Path, adapter: str, has_model: bool) -> None:
    (llama / adapter).write_text("{}")
    if not has_model:
        (llama / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match=f"{adapter}: adapters are not supported"):
        logits(llama)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            {"rope_parameters": {"rope_theta": 100.0}, "rope_scaling": LINEAR},
            "rope_scaling .* is used, not rope_parameters",
        ),
        (
            {"rope_parameters": {"rope_theta": 100.0}, "rope_scaling": LINEAR, "rope_theta": 77.0},
            "rope_scaling .* is used",
        ),
        (
            {"rope_theta": 77.0, "rope_parameters": {"rope_theta": 9.0}},
            r"rope_parameters\.rope_theta 9.0 is used, not rope_theta 77",
        ),
        (
            {
                "rope_parameters": None,
                "rope_scaling": {"type": "linear", "rope_type": "default", "factor": 4.0},
            },
            r"rope_scaling\.rope_type default is used, not rope_scaling\.type linear",
        ),
        ({"rope_parameters": None, "rope_scaling": {"factor": 4.0}}, r"rope_scaling\.factor is not used"),
        ({"rope_parameters": LLAMA3, "original_max_position_embeddings": 24}, None),
        (
            {
                "rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64},
                "original_max_position_embeddings": 24,
            },
            r"original_max_position_embeddings 24 is used, not rope_parameters\..* 64",
        ),
        ({"sliding_window": 5}, "sliding_window 5 is not used"),
        ({"rope_parameters": LLAMA3}, None),
    ],
)
def test_rotary_positions_and_windows_as_transformers_reads_them(
    llama: Path, entries: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    edit_config(llama, **entries)
    assert_as_transformers(llama)
    messages = [one.getMessage() for one in caplog.records if one.name.startswith("tdb_server")]
    assert re.search(said, "\n".join(messages)) if said else not messages


@pytest.mark.parametrize(
    ("family", "entries", "said"),
    [
        ("mistral", {"sliding_window": 5, "layer_types": ["full_attention"] * 3}, None),
        ("mistral", {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3}, None),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["full_attention"] * 3},
            None,
        ),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": ["sliding_attention"] * 3},
            None,
        ),
        ("gpt2", {"hidden_size": 32, "n_embd": 16}, "hidden_size 32 is used, not n_embd 16"),
        ("gpt2", {"num_attention_heads": 2}, "num_attention_heads 2 is used, not n_head 4"),
    ],
)
def test_entries_that_a_family_takes_or_leaves(
    tmp_path: Path, family: str, entries: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_random_model(tmp_path, family)
    edit_config(folder, **entries)
    assert_as_transformers(folder)
    messages = [one.getMessage() for one in caplog.records if one.name.startswith("tdb_server")]
    assert re.search(said, "\n".join(messages)) if said else not messages


def test_an_entry_that_stands_twice(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = llama / "config.json"
    path.write_text('{"rms_norm_eps": 0.5,' + path.read_text().lstrip()[1:])
    assert_as_transformers(llama)
    assert "rms_norm_eps stands twice: 1e-06 is used, not 0.5" in caplog.text

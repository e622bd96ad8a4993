"""How fast queries and keys turn in a GGUF file's model, in all the spellings that llama.cpp has had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.gguf import convert_gguf
from tdb_server.model.rotary import inverse_frequencies
from tdb_server.model.weights import load_decoder

from tests.gguf_models import LONG_ROPE, setting, write_gguf
from tests.random_models import reference_model, write_random_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("original"), "llama")


def convert(original: Path, folder: Path, factors: Any = None, **keys: object) -> Path:
    def edit(writer: Any) -> None:
        setting(**keys)(writer)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))

    path = write_gguf(original, folder / "m.gguf", edit=edit)
    target = folder / "converted"
    target.mkdir()
    convert_gguf(path, target)
    return target


def frequencies(folder: Path) -> torch.Tensor:
    rotary = load_decoder(folder, "cpu", torch.float32).config.rotary
    assert rotary is not None
    return inverse_frequencies(rotary)


PLAIN = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
LONG_PLAIN = 500.0 ** -(torch.arange(0, 8, 2) / 8)


@pytest.mark.parametrize(
    ("keys", "divisor"),
    [
        ({}, 1.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 4.0}, 4.0),
        ({"rope.scale_linear": 4.0, "rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1.0),
        ({"rope.scaling.type": "none", "rope.scale_linear": 4.0}, 1.0),
        ({"rope.scaling.type": "linear"}, 1.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, 1.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.finetuned": True}, 4.0),
        ({"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}, 4.0),
    ],
)
def test_linear_scaling(original: Path, tmp_path: Path, keys: dict[str, object], divisor: float) -> None:
    target = convert(original, tmp_path, **keys)
    torch.testing.assert_close(frequencies(target), PLAIN / divisor)


def test_the_base(original: Path, tmp_path: Path) -> None:
    target = convert(original, tmp_path, **{"rope.freq_base": 500.0})
    torch.testing.assert_close(frequencies(target), 500.0 ** -(torch.arange(0, 8, 2) / 8))


def test_the_base_is_10000_where_none_is_stored(original: Path, tmp_path: Path) -> None:
    target = convert(original, tmp_path, **{"rope.freq_base": None})
    torch.testing.assert_close(frequencies(target), PLAIN)


@torch.no_grad()
def test_factors_of_llama_3_1_give_the_original_model(tmp_path: Path) -> None:
    original = write_random_model(tmp_path / "original", "llama", rope_parameters=LLAMA3)
    reference = reference_model(original)
    scaled = reference.get_buffer("model.rotary_emb.inv_freq")
    factors = 500.0 ** -(torch.arange(0, 8, 2) / 8) / scaled  # what llama.cpp's converter stores
    assert len(factors.unique()) > 2, "the factors of this model would not show in its answers"
    target = convert(original, tmp_path, factors)
    torch.testing.assert_close(frequencies(target), scaled)
    ids = torch.arange(40)[None] * 11
    decoder = load_decoder(target, "cpu", torch.float32)
    ours = decoder.logits(decoder.forward(decoder.embed(ids)))
    torch.testing.assert_close(ours, reference(ids).logits, atol=1e-4, rtol=1e-4)
    # transformers reads the converted folder in the same way
    torch.testing.assert_close(ours, reference_model(target)(ids).logits, atol=1e-4, rtol=1e-4)


def test_factors_are_read_and_not_assumed(original: Path, tmp_path: Path) -> None:
    target = convert(original, tmp_path, [1.0, 2.5, 3.0, 7.0])
    torch.testing.assert_close(frequencies(target), PLAIN / torch.tensor([1.0, 2.5, 3.0, 7.0]))


def test_factors_and_linear_scaling_multiply(original: Path, tmp_path: Path) -> None:
    target = convert(original, tmp_path, [1.0, 2.0, 3.0, 4.0], **{"rope.scaling.factor": 2.0})
    torch.testing.assert_close(frequencies(target), PLAIN / torch.tensor([2.0, 4.0, 6.0, 8.0]))


@pytest.mark.parametrize(
    ("factors", "what"),
    [
        ([1.0] * 3, r"has shape \[3\]; half a head is 4"),
        ([1.0, 1.0, 0.0, 1.0], "not above 0"),
        ([1.0, 1.0, float("inf"), 1.0], "not finite"),
    ],
)
def test_factors_that_make_no_sense(original: Path, tmp_path: Path, factors: list[float], what: str) -> None:
    with pytest.raises(ModelBroken, match=rf"m\.gguf: rope_freqs\.weight .*{what}"):
        convert(original, tmp_path, factors)


@pytest.mark.parametrize("kind", ["yarn", "longrope", "llama3", "odd"])
def test_scalings_that_are_not_computed(original: Path, tmp_path: Path, kind: str) -> None:
    keys = {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    with pytest.raises(UnsupportedModel, match=rf"m\.gguf: llama\.rope\.scaling\.type is '{kind}'; none and"):
        convert(original, tmp_path, **keys)


def test_two_factors_that_differ(original: Path, tmp_path: Path) -> None:
    keys = {"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}
    with pytest.raises(
        ModelBroken, match=r"llama\.rope\.scale_linear is 2\.0, but rope\.scaling\.factor is 4\.0"
    ):
        convert(original, tmp_path, **keys)


@pytest.mark.parametrize("key", ["attn_factor", "yarn_attn_factor", "yarn_ext_factor", "yarn_log_multiplier"])
def test_what_would_change_attention_or_single_channels(original: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"llama\.rope\.scaling\.{key} is 0\.5; only"):
        convert(original, tmp_path, **{f"rope.scaling.{key}": 0.5})


@pytest.mark.parametrize(
    ("keys", "changed", "error", "what"),
    [
        (
            {},
            {"rope_factors_short.weight": None},
            ModelBroken,
            r"tensor rope_factors_short\.weight is missing",
        ),
        ({}, {"rope_factors_long.weight": None}, ModelBroken, r"tensor rope_factors_long\.weight is missing"),
        ({}, {"rope_factors_long.weight": [1.0] * 3}, ModelBroken, r"has shape \[3\]; half a head is 4"),
        ({}, {"rope_factors_short.weight": [1.0, 0.0, 1.0, 1.0]}, ModelBroken, "not above 0"),
        ({"rope.scaling.attn_factor": None}, {}, ModelBroken, r"phi3\.rope\.scaling\.attn_factor is missing"),
        (
            {"rope.scaling.original_context_length": None},
            {},
            ModelBroken,
            r"phi3\.rope\.scaling\.original_context_length is missing",
        ),
        ({"rope.scaling.type": "yarn"}, {}, UnsupportedModel, r"phi3\.rope\.scaling\.type is 'yarn'"),
        ({"rope.scaling.factor": 2.0}, {}, UnsupportedModel, r"phi3\.rope\.scaling\.factor is 2\.0"),
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 1.0}, {}, None, ""),
    ],
)
def test_factors_of_phi_3(
    tmp_path: Path,
    keys: dict[str, object],
    changed: dict[str, Any],
    error: type[Exception] | None,
    what: str,
) -> None:
    original = write_random_model(tmp_path / "original", "phi3", **LONG_ROPE)
    tensors = {f"rope_factors_{one}.weight": [1.0, 2.0, 3.0, 4.0] for one in ("long", "short")} | changed

    def edit(writer: Any) -> None:
        setting(**keys)(writer)
        for name, values in tensors.items():
            writer.tensors[0].pop(name, None)
            if values is not None:
                writer.add_tensor(name, np.asarray(values, np.float32))

    path, target = write_gguf(original, tmp_path / "m.gguf", edit=edit), tmp_path / "converted"
    target.mkdir()
    if error is None:
        convert_gguf(path, target)
        torch.testing.assert_close(frequencies(target)[1:], LONG_PLAIN[1:] / torch.tensor([2.0, 3.0, 4.0]))
        return
    with pytest.raises(error, match=what):
        convert_gguf(path, target)


@torch.no_grad()
@pytest.mark.parametrize("changed", [{"long_factor": [1.0, 1.0, 2.0, 9.0]}, {"attention_factor": 1.2}])
def test_longrope_of_folders_is_read_as_transformers_does(
    original: Path, tmp_path: Path, changed: dict[str, object]
) -> None:
    target = convert(original, tmp_path, [1.0, 1.0, 2.0, 4.0])
    config = json.loads((target / "config.json").read_text())
    config["rope_parameters"] |= changed
    (target / "config.json").write_text(json.dumps(config))
    ids = torch.arange(40)[None] * 11
    decoder = load_decoder(target, "cpu", torch.float32)
    ours = decoder.logits(decoder.forward(decoder.embed(ids)))
    torch.testing.assert_close(ours, reference_model(target)(ids).logits, atol=1e-4, rtol=1e-4)

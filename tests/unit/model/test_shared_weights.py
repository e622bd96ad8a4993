"""Weights in a file in memory: filled once, read by all, and never mistaken for others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.errors import ModelBroken
from tdb_server.model.decoder import Decoder
from tdb_server.model.weights import load_decoder

from tests.random_models import write_random_model

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILLED_BYTES = 4096


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("test-weights")
    yield descriptor
    os.close(descriptor)


def loaded(folder: Path, file: int | None) -> Decoder:
    return load_decoder(folder, "cpu", torch.float32, shared_file=file)


def assert_same_weights(one: Decoder, other: Decoder) -> None:
    pairs = list(zip(one.weights.tensors(), other.weights.tensors(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("fixture", ["tiny-a", "tiny-llama-c"])
def test_the_second_reads_what_the_first_has_filled_in(fixture: str, file: int) -> None:
    first = loaded(FIXTURES / fixture, file)
    assert os.fstat(file).st_size > FILLED_BYTES
    second = loaded(FIXTURES / fixture, file)
    assert_same_weights(first, loaded(FIXTURES / fixture, None))
    assert_same_weights(second, first)
    token_ids = torch.tensor([[1, 2, 3]])
    residuals = [one.forward(one.embed(token_ids)) for one in (first, second)]
    assert torch.equal(*residuals)
    first.weights.final_norm.gain += 1  # the one that filled them in can still write
    assert_same_weights(second, first)


@pytest.mark.parametrize("head", ["equal", "other", "alone"])
def test_halves_of_a_tied_pair(head: str, file: int, tmp_path: Path) -> None:
    """Whoever reads after the first decides as it did whether there are one or two of them."""
    folder = write_random_model(tmp_path, "llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding + 1 if head == "other" else embedding.clone()
    if head == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors")
    first, second = loaded(folder, file), loaded(folder, file)
    assert_same_weights(first, loaded(folder, None))
    assert_same_weights(second, first)
    assert torch.equal(second.weights.unembedding, tensors["lm_head.weight"])
    assert (second.weights.unembedding is second.weights.token_embedding) == (head != "other")


def test_others_on_disk_are_not_mistaken_for_them(file: int, tmp_path: Path) -> None:
    loaded(FIXTURES / "tiny-a", file)
    assert_same_weights(loaded(FIXTURES / "tiny-llama-c", file), loaded(FIXTURES / "tiny-llama-c", None))
    assert_same_weights(loaded(FIXTURES / "tiny-a", file), loaded(FIXTURES / "tiny-a", None))


def test_what_was_not_filled_to_the_end_is_filled_again(file: int, tmp_path: Path) -> None:
    """As when a worker is killed while it loads: here it finds out late that a weight is not a number."""
    broken = tmp_path / "broken"
    shutil.copytree(FIXTURES / "tiny-a", broken, ignore=shutil.ignore_patterns("autoencoders"))
    weights = load_file(broken / "model.safetensors")
    weights["ln_f.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ModelBroken, match="ln_f"):
        loaded(broken, file)
    assert os.fstat(file).st_size > FILLED_BYTES
    assert_same_weights(loaded(FIXTURES / "tiny-a", file), loaded(FIXTURES / "tiny-a", None))

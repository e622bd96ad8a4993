from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tdb_server.errors import ModelError
from tdb_server.model.load_failures import load_failures, reason
from tdb_server.workers.engine_loading import device_of, load_engine
from tdb_server.workers.messages import Configuration


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
    shutil.copytree(Path(__file__).parents[2] / "fixtures" / "tiny-a", folder)
    (folder / "config.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ModelError) as refused:
        load_engine(Configuration(str(folder), (), "cpu", 0, "float32", 1), lambda stage, fraction: None)
    assert refused.value.message.startswith(
        f"{folder / 'config.json'}: cannot be read as JSON: maximum recursion"
    )


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

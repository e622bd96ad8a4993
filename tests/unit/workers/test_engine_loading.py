from __future__ import annotations

import pytest
import torch
from tdb_server.errors import ModelError
from tdb_server.workers.engine_loading import device_of
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

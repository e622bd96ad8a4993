"""What a server allows a call to take, and the type of its weights, where nobody has said it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tdb_client import Client, ResourceExhaustedError

from tests.random_models import write_random_model
from tests.running_server import RunningServer, StartServer


def test_calls_may_take_what_is_free(server: RunningServer) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with Client(f"127.0.0.1:{server.port}") as client:
        assert 0 < client.model_info().limits.max_activation_bytes < 0.8 * physical
        assert client.model_info().dtype == "float32"
        client.debug("the cat", " the", k=2)
    assert "MiB beside the model on cpu, unless told otherwise" in server.log.read_text()


def test_what_is_told_holds_and_weights_may_stay_as_they_are_stored(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path / "llama", "llama")
    tensors = load_file(folder / "model.safetensors")
    halved = {name: one.bfloat16() for name, one in tensors.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    limit = 1_000_000
    server = start_server("--dtype", "auto", "--max-activation-bytes", str(limit), model=folder)
    with Client(f"127.0.0.1:{server.port}") as client:
        info = client.model_info()
        assert (info.dtype, info.limits.max_activation_bytes) == ("bfloat16", limit)
        small, large = "the cat", " the" * 50
        assert client.debug(small, " the", k=2).loss is not None
        with pytest.raises(ResourceExhaustedError, match=f"more than the {limit} allowed"):
            client.debug(large, " the", k=100)

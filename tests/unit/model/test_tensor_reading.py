"""Files of tensors, read part by part: what arrives, what is digested, and how much memory that takes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model import tensor_reading
from tdb_server.model.tensor_reading import Target, read_file

STORED = {
    "bfloat16": torch.arange(15, dtype=torch.bfloat16).view(5, 3),
    "float16": torch.arange(24, dtype=torch.float16).view(4, 3, 2),
    "float32": torch.arange(28, dtype=torch.float32).view(7, 4) / 3,
    "float64": torch.arange(5, dtype=torch.float64) / 7,
    "none": torch.zeros(0, 3),
    "number": torch.tensor(2.5),
    "ignored": torch.arange(100, dtype=torch.int64),
}


def _as_it_is(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(STORED, tmp_path / "some.safetensors", metadata={"format": "pt"})
    return tmp_path / "some.safetensors"


@pytest.mark.parametrize("part_bytes", [1, 20, 1 << 22])
def test_all_arrives_whatever_the_parts(file: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_reading, "PART_BYTES", part_bytes)
    wanted = {name: one for name, one in STORED.items() if name != "ignored"}
    targets = {name: Target(torch.full(one.shape, 9.0), _as_it_is) for name, one in wanted.items()}
    transposed = torch.full((4, 7), 9.0)
    targets["float32"] = Target(transposed.T, lambda x: 2 * x)
    digest, parts = hashlib.sha256(), list[int]()
    read_file(file, targets, digest, parts.append)
    for name, one in wanted.items():
        expected = 2 * one.float() if name == "float32" else one.float()
        assert torch.equal(targets[name].place, expected), name
    assert torch.equal(transposed, 2 * STORED["float32"].T)
    assert digest.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(parts) == file.stat().st_size


def test_what_is_no_number(file: Path) -> None:
    targets = {"ignored": Target(torch.zeros(100), _as_it_is)}
    with pytest.raises(UnsupportedModel, match="ignored is stored as I64, not as floating point"):
        read_file(file, targets, hashlib.sha256(), lambda n: None)


def test_a_file_that_is_cut_off_meanwhile(file: Path) -> None:
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 4)
    with pytest.raises(ModelBroken, match=r"some\.safetensors: .* cannot be read: the file ends before it"):
        read_file(file, {}, hashlib.sha256(), lambda n: None)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory a process had")
@pytest.mark.parametrize("is_transposed", [False, True])
def test_nothing_is_held_but_what_is_made(is_transposed: bool, tmp_path: Path) -> None:
    """In a process of its own, whose peak nothing else has raised."""
    file, mib = tmp_path / "large.safetensors", 2**20
    save_file({"weight": torch.zeros(4096, 12 * 1024)}, file)  # 192 MiB
    program = f"""
import hashlib, torch
from pathlib import Path
from tdb_server.model.tensor_reading import Target, read_file
def peak():  # that of getrusage is at least that of the process that started this one
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
place = torch.empty(12 * 1024, 4096) if {is_transposed} else torch.empty(4096, 12 * 1024)
torch.zeros(1024).sum().isfinite()
before = peak()
target = Target(place.T if {is_transposed} else place, lambda x: x)
read_file(Path({str(file)!r}), {{"weight": target}}, hashlib.sha256(), lambda n: None)
print(peak() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert 160 * mib < int(run.stdout) < 224 * mib  # the peak of what was imported may lie above the start

"""What calls may tell a GPU: launches and waits, counted on a GPU that is not there.

The model has GPT-2 small's twelve layers and heads, but thin ones, and few words: neither the width nor the
vocabulary shows in the counts. With the full shape they are the same, as `make launches` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from benchmarks.launch_cases import Counted, LaunchCounter
from benchmarks.launches import main
from benchmarks.models import GPT2_SHAPE, SMOLLM2_SHAPE, write_model

LAYERS_OF_GPT2_SMALL = GPT2_SHAPE | {"n_embd": 48, "vocab_size": 500, "n_positions": 256}
Count = Callable[..., Counted]


@pytest.fixture(scope="module")
def count(tmp_path_factory: pytest.TempPathFactory) -> Count:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, "gpt2", LAYERS_OF_GPT2_SMALL)
    return cache(LaunchCounter(folder, n_latents=512, n_active_latents=32).count)


@pytest.mark.parametrize(
    ("case", "n_tokens", "n_calls", "max_launches", "max_waits"),
    [
        ("plain", 16, 1, 720, 6),
        ("plain", 64, 1, 720, 6),
        ("plain", 256, 1, 720, 6),
        ("ablated", 64, 1, 800, 6),
        ("neuron", 64, 1, 720, 6),
        ("latents", 64, 1, 900, 8),
        ("plain", 64, 8, 900, 8),
    ],
)
def test_limits(
    count: Count, case: str, n_tokens: int, n_calls: int, max_launches: int, max_waits: int
) -> None:
    found = count(case, n_tokens, n_calls)
    assert found.launches <= max_launches, found.launching
    assert found.waits <= max_waits, found.waiting


def test_merged_calls_cost_little_more(count: Count) -> None:
    """Per row at most 25 launches, and two waits for all of them."""
    alone, merged = count("plain", 16), count("plain", 16, 8)
    assert merged.launches - alone.launches <= 25 * 7
    assert merged.waits - alone.waits <= 2


def test_the_floor_is_what_transformers_does(count: Count) -> None:
    """Per layer 18 operations forward and 21 backward, and a few before and after."""
    floor = count("floor-sdpa", 16)
    assert floor.launches_by_stage.keys() == {"forward", "backward"}
    assert 12 * 39 <= floor.launches <= 12 * 39 + 20
    assert count("floor-sdpa", 64).launches == floor.launches < count("floor-eager", 16).launches


def test_rms_norm_is_one_operation_each_way(tmp_path: Path) -> None:
    thin = {"hidden_size": 36, "intermediate_size": 40, "vocab_size": 500, "num_hidden_layers": 2}
    write_model(tmp_path, "llama", SMOLLM2_SHAPE | thin)
    launching = LaunchCounter(tmp_path).count("plain", 16).launching
    norms, gradients = (
        sum(n for what, n in launching.items() if what.startswith(start))
        for start in ("forward: rms_norm,", "backward: rms_norm_gradient,")
    )
    assert norms == gradients == 2 * 2  # the final norm's scale is looked at: that norm takes the plain steps


def test_the_command_writes_what_it_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, "gpt2", LAYERS_OF_GPT2_SMALL | {"n_layer": 2})
    monkeypatch.setattr("benchmarks.launches.MODELS", {"gpt2": lambda: Folder(tmp_path)})
    main(
        [
            "--tokens",
            "8",
            "--cases",
            "floor-sdpa,plain,head",
            "--batch",
            "1,2",
            "--json",
            str(tmp_path / "json"),
        ]
    )
    written = json.loads((tmp_path / "json").read_text())
    assert [(one["case"], one["calls"], one["tokens"]) for one in written] == [
        (case, n_calls, 8) for case in ("floor-sdpa", "plain", "head") for n_calls in (1, 2)
    ]
    printed = capsys.readouterr().out
    for one in written:
        assert one["launches"] == sum(one["launching"].values()) == sum(one["launches_by_stage"].values())
        assert one["waits"] == sum(one["waiting"].values()) == sum(one["waits_by_stage"].values())
        assert f" {one['launches']} |" in printed


class Folder:
    """A model that lies where a test put it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

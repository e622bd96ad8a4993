"""A GPU's answers are those of a CPU, and depend neither on company nor on how often one asks.

In float64, where nothing but an exact tie could change a ranking: the lists must be the same too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tdb_server.domain.debug import inference_sub_request
from tdb_server.engine.engine import Engine
from tdb_server.model.weights import load_decoder

from tests.golden.test_goldens_in_process import engine
from tests.gpu.calls import SITES, calls_of_every_kind, question
from tests.property.requests import Answer, answers_of_calls
from tests.property.same_answers import Nodes, assert_same_answers
from tests.random_models import write_random_model

TOLERANCE = 1e-9
ROTARY_TOLERANCE = 1e-5
"""Rotary angles are float32 in every model, and each device has its own cosine of them."""
FIXTURES = ("tiny-a", "tiny-llama-c")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_call_alone_and_in_a_batch(fixture: str, device: str) -> None:
    running = engine(fixture, SITES, device, "float64")
    calls = calls_of_every_kind()
    for call, in_batch in zip(calls, answers_of_calls(running, calls), strict=True):
        (alone,) = answers_of_calls(running, [call])
        _assert_same(alone, in_batch, TOLERANCE)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_gpu_and_a_cpu(fixture: str, device: str) -> None:
    calls = calls_of_every_kind()
    on_gpu, on_cpu = (
        answers_of_calls(engine(fixture, SITES, where, "float64"), calls) for where in (device, "cpu")
    )
    tolerance = TOLERANCE if fixture == "tiny-a" else ROTARY_TOLERANCE
    for one, other in zip(on_gpu, on_cpu, strict=True):
        _assert_same(one, other, tolerance)


def test_a_long_prompt_and_a_large_vocabulary(device: str, tmp_path: Path) -> None:
    """Large tensors are ranked block by block, and layers are no longer stacked."""
    model = write_random_model(
        tmp_path, "gpt2", n_layer=3, n_embd=64, n_head=4, n_positions=320, vocab_size=20_000
    )
    on_gpu, on_cpu = (
        answers_of_calls(
            Engine(load_decoder(model, where, torch.float64), []),
            [[inference_sub_request(question(300, k=300))]],
        )
        for where in (device, "cpu")
    )
    _assert_same(on_gpu[0], on_cpu[0], TOLERANCE)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_asking_again(fixture: str, device: str) -> None:
    """The same batch gives the same numbers to the last bit."""
    running = engine(fixture, SITES, device)
    first, second = (answers_of_calls(running, calls_of_every_kind()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        _assert_same(one, other, 0.0)


def _assert_same(one: list[Answer], other: list[Answer], tolerance: float) -> None:
    for of_one, of_other in zip(one, other, strict=True):
        assert_same_answers(of_one, of_other, tolerance, Nodes.EQUAL)

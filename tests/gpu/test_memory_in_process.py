"""What a run takes of a GPU's memory it gives back: after answers, cancellations and failures alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.results import Finished
from tdb_server.engine.engine import Engine
from tdb_server.model.weights import load_decoder
from tdb_server.workers.batch_run import run_batch
from tdb_server.workers.messages import OutOfMemory, RunBatch

from tests.golden.test_goldens_in_process import engine
from tests.gpu.calls import SITES, calls_of_every_kind, question
from tests.gpu.memory import SLACK_BYTES, fraction_of_gpu, held_bytes, taken_bytes
from tests.gpu.wide_model import CAP_BYTES, N_TOKENS, write_wide_model
from tests.property.requests import answers_of_calls
from tests.property.same_answers import Nodes, assert_same_answers

N_CALLS = 50


def test_fifty_calls_leave_nothing_behind(device: str) -> None:
    running, calls = engine("tiny-a", SITES, device), calls_of_every_kind()
    for call in calls:
        answers_of_calls(running, [call])
    held, taken = held_bytes(), taken_bytes()
    for call in calls * (N_CALLS // len(calls) + 1):  # the last is the same: its mask is kept
        answers_of_calls(running, [call])
    assert held_bytes() == held
    assert taken_bytes() <= taken + SLACK_BYTES


@pytest.mark.parametrize("n_asked", [1, 3, 5, 8, 12])
def test_a_cancelled_run_leaves_nothing_behind(n_asked: int, device: str) -> None:
    """It is cancelled in the forward pass, in the backward pass, which has a thread of its own, or later."""
    running = engine("tiny-a", SITES, device)
    call = calls_of_every_kind()[2]
    answers_of_calls(running, [call])
    before, numbers = held_bytes(), itertools.count()
    events = [event for _, event in running.run([Call("1", tuple(call))], lambda _: next(numbers) >= n_asked)]
    assert not any(isinstance(event, Finished) for event in events)
    assert held_bytes() == before


@pytest.fixture
def small_share(device: str) -> Iterator[None]:
    """This process may take no more than `CAP_BYTES`."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction_of_gpu(CAP_BYTES), device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("small_share")
def test_a_call_that_does_not_fit_leaves_nothing_behind(device: str, tmp_path: Path) -> None:
    running = Engine(load_decoder(write_wide_model(tmp_path), device, torch.float32), [])
    fits = [inference_sub_request(question(N_TOKENS, k=5))]
    ((expected,),) = answers_of_calls(running, [fits])
    before = held_bytes()
    too_large = Call("1", tuple(fits * 16))
    assert run_batch(running, RunBatch(1, (too_large,)), lambda _: False, lambda _: None) == OutOfMemory()
    assert held_bytes() == before
    ((again,),) = answers_of_calls(running, [fits])
    assert_same_answers(expected, again, 0.0, Nodes.EQUAL)

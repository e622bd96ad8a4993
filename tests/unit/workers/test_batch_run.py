from __future__ import annotations

import pytest
import torch
from tdb_server.domain.results import Finished, ObjectiveValues
from tdb_server.errors import Internal, InvalidRequest
from tdb_server.workers import batch_run
from tdb_server.workers.messages import CallProgress, OutOfMemory, RunBatch

from tests.unit.workers.conftest import make_call


class FakeEngine:
    """Yields events, then fails as it is told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error
        self.calls: list[str] = []
        self.n_runs = 0

    def run(self, calls, is_cancelled):
        self.n_runs += 1
        self.calls = [call.call_id for call in calls]
        for call in calls:
            yield call.call_id, ObjectiveValues(0, 1.0, None)
            if self._error is not None:
                raise self._error
            yield call.call_id, Finished()


def run(error: BaseException | None = None, is_cancelled=lambda call_id: False, n_calls: int = 2):
    """Runs a batch; what went wrong, the engine, and what was sent."""
    engine, sent = FakeEngine(error), []
    batch = RunBatch(1, tuple(make_call() for _ in range(n_calls)))
    failure = batch_run.run_batch(engine, batch, is_cancelled, sent.append)
    return failure, engine, sent


def test_events_are_sent_as_they_come():
    failure, engine, sent = run()
    assert failure is None
    assert sent == [
        CallProgress(call_id, event)
        for call_id in engine.calls
        for event in (ObjectiveValues(0, 1.0, None), Finished(n_events=1))
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_short_memory_is_told_apart(error):
    failure, _, sent = run(error)
    assert failure == OutOfMemory()
    assert len(sent) == 1


def test_what_the_cpu_says_when_memory_is_short_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert batch_run._is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "text",
    ["CUDA error: an illegal memory access was encountered", "CUDA error: device-side assert triggered"],
)
def test_a_lost_device_ends_the_worker(text):
    with pytest.raises(batch_run.DeviceLost):
        run(RuntimeError(text))


def test_refusals_cross_as_they_are():
    refusal = InvalidRequest.__new__(InvalidRequest, [])
    assert run(refusal)[0] is refusal


def test_a_fault_is_logged_and_crosses_as_an_id(caplog):
    failure, _, _ = run(ValueError("secret"))
    assert isinstance(failure, Internal)
    assert "secret" not in failure.message
    assert failure.error_id in caplog.text
    assert "secret" in caplog.text


def test_a_front_that_is_gone_is_no_fault():
    with pytest.raises(BrokenPipeError):
        run(BrokenPipeError())


def test_cancelled_calls_are_not_begun():
    _, engine, _ = run(is_cancelled=lambda call_id: int(call_id) % 2 == 0, n_calls=4)
    assert len(engine.calls) == 2


def test_a_batch_whose_calls_are_all_cancelled_is_no_fault():
    failure, engine, sent = run(is_cancelled=lambda call_id: True)
    assert (failure, sent, engine.n_runs) == (None, [], 0)

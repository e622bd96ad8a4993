"""Callers that never pause, with the client's default retry policy and nothing of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tdb_client import Client
from tdb_client.connection import Connection
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tests.chaos.requests import debug_request
from tests.chaos.wire_answers import answer_of_response, difference

N_CALLERS = 8
PATIENCE_SECONDS = 60.0
"""A call that has waited for this long is lost."""

PROMPT, TARGET = "the cat sat on the", " the"


@dataclass
class Calls:
    """What came of them: seconds of those that were answered, and what was wrong with the others."""

    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def n_answered(self) -> int:
        return len(self.seconds)

    @property
    def longest_seconds(self) -> float:
        return max(self.seconds)


@contextmanager
def calling(target: str) -> Iterator[Calls]:
    """Eight callers, until the block is left: unary and streamed calls in turn, with the same answers."""
    calls, stopped = Calls(), threading.Event()
    with ThreadPoolExecutor(N_CALLERS) as threads:
        callers = [threads.submit(_keep_calling, target, calls, stopped) for _ in range(N_CALLERS)]
        try:
            yield calls
        finally:
            stopped.set()
        _raise_what_was_raised(callers)


def _raise_what_was_raised(callers: list[Future[None]]) -> None:
    for one in callers:
        one.result()


def _keep_calling(target: str, calls: Calls, stopped: threading.Event) -> None:
    request = debug_request(PROMPT)
    with Client(target, timeout=PATIENCE_SECONDS) as client, Connection(target).open() as channel:
        debugger = TransformerDebuggerServiceStub(channel)
        expected = answer_of_response(debugger.Debug(request, timeout=PATIENCE_SECONDS))
        expected_loss = client.debug(PROMPT, TARGET, k=5).loss
        while not stopped.is_set():
            begun_at = time.monotonic()
            try:
                answer = answer_of_response(debugger.Debug(request, timeout=PATIENCE_SECONDS))
                calls.seconds.append(time.monotonic() - begun_at)
                if what := difference(answer, expected):
                    calls.faults.append(f"another answer: {what}")
                begun_at = time.monotonic()
                loss = client.debug(PROMPT, TARGET, k=5).loss
                calls.seconds.append(time.monotonic() - begun_at)
                if loss is None or expected_loss is None or abs(loss - expected_loss) > 1e-4:
                    calls.faults.append(f"another loss: {loss}")
            except Exception as error:
                calls.faults.append(
                    f"after {time.monotonic() - begun_at:.1f} s: {type(error).__name__}: {error}"
                )

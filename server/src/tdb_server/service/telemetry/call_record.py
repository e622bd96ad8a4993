"""What is known about a call: filled while it is answered, then handed to log, metrics and traces."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger(__name__)
ABOUT_THE_SERVER = ("grpc.health.", "grpc.reflection.", "grpc.channelz.")
"""Beginnings of methods by which balancers and tools ask how the server is."""


@dataclass(eq=False)
class CallRecord:
    """One call.

    Attributes:
        method: full name without the leading slash; "other" for methods that do not exist. Over HTTP as in
            `POST /batched`.
        is_http: whether the call came over HTTP.
        traceparent: the caller's trace, as W3C Trace Context writes it; empty when there is none.
        peer: the client's address: as gRPC writes it, or over HTTP the host alone.
        caller: who calls; empty before that is known.
        request_id: as in the call's answer; empty where methods have none.
        n_sub_requests: sub-requests.
        n_tokens: tokens of all prompts, once they are known to be sound.
        keeps_prompts: whether the log may have the prompts.
        prompts: the prompts, where it may.
        is_cached: whether the results were there already; None when nothing was run.
        received_bytes: of the request.
        sent_bytes: of all responses.
        status: name of the gRPC status the call ended with; "OK" unless it is set.
        reason: why it failed, as in `ErrorInfo.reason`.
        http_status: the status the client saw, for calls over HTTP.
        began_at: wall clock, seconds.
        seconds: from the call's arrival to its end.
        submitted_seconds: from the call's arrival to the queue; None when it was never there.
        queue_seconds: in the queue; None when no worker has taken it up.
        run_seconds: from its being taken up to its last result; None when that never came.
    """

    method: str
    is_http: bool = False
    traceparent: str = ""
    peer: str = ""
    caller: str = ""
    request_id: str = ""
    n_sub_requests: int = 0
    n_tokens: int = 0
    keeps_prompts: bool = False
    prompts: tuple[str, ...] = ()
    is_cached: bool | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    status: str = "OK"
    reason: str = ""
    http_status: int = 0
    began_at: float = field(default_factory=time.time)
    seconds: float = 0.0
    submitted_seconds: float | None = None
    queue_seconds: float | None = None
    run_seconds: float | None = None
    _begun: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_seconds(self) -> float:
        """Since the call's arrival."""
        return time.perf_counter() - self._begun

    @property
    def http_attributes(self) -> dict[str, str | int]:
        """What metrics and traces say of a call over HTTP, as OpenTelemetry's conventions name it."""
        method, _, route = self.method.partition(" ")
        request = {"http.request.method": method, "http.route": route}
        return {**request, "http.response.status_code": self.http_status}

    def parsed(self, prompts: Sequence[Sequence[str]]) -> None:
        """The request is sound; its prompts are given as tokens."""
        self.n_tokens = sum(len(tokens) for tokens in prompts)
        if self.keeps_prompts:
            self.prompts = tuple("".join(tokens) for tokens in prompts)

    def finished_running(self) -> None:
        """The last result has come."""
        before = (self.submitted_seconds or 0.0) + (self.queue_seconds or 0.0)
        self.run_seconds = max(0.0, self.elapsed_seconds - before)


class CallListener(Protocol):
    """Hears of calls, on the event loop, and must be quick."""

    def call_started(self, record: CallRecord) -> None:
        """A call has come. Only the method is known."""
        return  # most have nothing to do yet

    def call_finished(self, record: CallRecord) -> None:
        """A call has ended, in whatever way."""


_current: ContextVar[CallRecord | None] = ContextVar("call_record", default=None)


def current_record() -> CallRecord:
    """The record of the call that is being answered; one that nobody reads outside of a call."""
    return _current.get() or CallRecord("")


@contextmanager
def recorded(record: CallRecord, listeners: Sequence[CallListener]) -> Iterator[None]:
    """Around the answering of a call. How it ended is for the code inside to note."""
    _current.set(record)
    _tell([listener.call_started for listener in listeners], record)
    try:
        yield
    finally:
        record.seconds = record.elapsed_seconds
        _tell([listener.call_finished for listener in listeners], record)


def _tell(listeners: Sequence[Callable[[CallRecord], None]], record: CallRecord) -> None:
    """Calls listeners. Whatever goes wrong there, the call itself goes on."""
    for tell in listeners:
        try:
            tell(record)
        except Exception:
            _log.exception("a call cannot be reported")

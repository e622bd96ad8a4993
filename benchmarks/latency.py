"""Latency of one kind of request at one length, beside the floor.

Floor, StreamDebug and Debug take turns, in changing order and each with a prompt of its own, so that they see
the same machine and nothing but the weights can be remembered. A ratio is the median over the turns of
what the call took over what the floor took in the same turn: other work on the machine then mostly cancels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from tdb_client import DebugSubRequest, ModelInfo, Timings

from benchmarks.caller import Caller, TimedCall
from benchmarks.cases import Case
from benchmarks.floor import Floor
from benchmarks.memory import PeakMemory, anonymous_bytes
from benchmarks.prompts import Prompt, Words

PAUSE_SECONDS = 0.01  # in which the threads of whoever was measured last go to sleep
STAGES = ("queue", "forward", "backward", "derive", "score", "serialize")


@dataclass(frozen=True)
class Effort:
    """How often a row is repeated: at most `max_turns`, less when `max_seconds` are over."""

    max_turns: int
    min_turns: int
    max_seconds: float
    n_warm_ups: int


@dataclass(frozen=True)
class Bench:
    """What rows are measured with.

    Attributes:
        caller: connected to the server.
        floor: the same model in this process.
        words: for prompts.
        info: what the server says about the model.
        worker_pid: the process that computes; None on a GPU, or where it is not known.
        ready_bytes: anonymous memory it had when it was ready.
        weight_bytes: of the model, to be taken off a GPU's peak.
    """

    caller: Caller
    floor: Floor
    words: Words
    info: ModelInfo
    worker_pid: int | None
    ready_bytes: int | None
    weight_bytes: int


@dataclass
class Row:
    """What was measured of a case at one length. Times in seconds, None where there was nothing to measure.

    Attributes:
        memory_bytes: most memory above what the worker had when it was ready.
        wire_bytes: of the messages of a streamed call, both ways.
        lists_p50: to read all token lists of a streamed call afterwards.
        transport: what of a streamed call is in no stage: gRPC, pipes, and whatever is not accounted for.
        failure: why there are no numbers, or not all.
    """

    model: str
    precision: str
    case: str
    title: str
    n_tokens: int
    n_turns: int = 0
    floor_p50: float | None = None
    floor_p95: float | None = None
    floor_eager_p50: float | None = None
    stream_p50: float | None = None
    stream_p95: float | None = None
    stream_ratio: float | None = None
    debug_p50: float | None = None
    debug_p95: float | None = None
    debug_ratio: float | None = None
    first_result_p50: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    lists_p50: float | None = None
    transport: float | None = None
    memory_bytes: int | None = None
    wire_bytes: int | None = None
    failure: str | None = None


Turn = dict[str, float]


def measure_row(bench: Bench, case: Case, n_tokens: int, effort: Effort, row: Row) -> Row:
    """Fills in a row. A call that the server refuses is noted and the rest is measured."""
    kinds = _kinds(bench, case, n_tokens, row)
    calls: list[TimedCall] = []

    def stream() -> float:
        calls.append(bench.caller.stream_debug(_sub_requests(bench, case, n_tokens)))
        return calls[-1].seconds

    kinds["stream"] = stream
    for _ in range(effort.n_warm_ups):
        _take_turn(kinds, row, 0)
    calls.clear()
    turns: list[Turn] = []
    deadline = time.monotonic() + effort.max_seconds
    while len(turns) < effort.max_turns:
        turns.append(_take_turn(kinds, row, len(turns)))
        if len(turns) >= effort.min_turns and time.monotonic() > deadline:
            break
    _summarize(row, turns, calls)
    if calls:
        row.memory_bytes = _peak_memory(bench, case, n_tokens)
    return row


def _kinds(bench: Bench, case: Case, n_tokens: int, row: Row) -> dict[str, Callable[[], float]]:
    """What takes turns, but for the stream."""

    def prompts() -> list[Prompt]:
        return [bench.words.prompt(n_tokens) for _ in range(case.n_rows)]

    kinds: dict[str, Callable[[], float]] = {"floor": lambda: bench.floor.seconds(prompts())}
    if case.name == "plain":
        kinds["floor_eager"] = lambda: bench.floor.seconds(prompts(), eager=True)
    try:
        bench.caller.debug(_sub_requests(bench, case, n_tokens))
    except grpc.RpcError as error:
        row.failure = f"Debug: {_reason(error)}"
    else:
        kinds["debug"] = lambda: bench.caller.debug(_sub_requests(bench, case, n_tokens)).seconds
    return kinds


def _sub_requests(bench: Bench, case: Case, n_tokens: int) -> Sequence[DebugSubRequest]:
    return case.sub_requests(bench.words.prompt(n_tokens), bench.info, bench.words)


def _take_turn(kinds: dict[str, Callable[[], float]], row: Row, n_before: int) -> Turn:
    """Each kind once, beginning with another one every time."""
    names = list(kinds)
    start = n_before % len(names)
    turn: Turn = {}
    for name in names[start:] + names[:start]:
        time.sleep(PAUSE_SECONDS)
        try:
            turn[name] = kinds[name]()
        except grpc.RpcError as error:
            row.failure = f"{name}: {_reason(error)}"
    return turn


def _reason(error: grpc.RpcError) -> str:
    return f"{error.code().name}, {error.details()}"


def _summarize(row: Row, turns: list[Turn], calls: list[TimedCall]) -> None:
    row.n_turns = len(turns)
    row.floor_p50, row.floor_p95 = _percentiles(turns, "floor")
    row.floor_eager_p50, _ = _percentiles(turns, "floor_eager")
    row.stream_p50, row.stream_p95 = _percentiles(turns, "stream")
    row.debug_p50, row.debug_p95 = _percentiles(turns, "debug")
    row.stream_ratio = _ratio(turns, "stream")
    row.debug_ratio = _ratio(turns, "debug")
    if not calls:
        return
    row.first_result_p50 = median([one.first_result_seconds for one in calls])
    row.lists_p50 = median([one.lists_seconds for one in calls])
    row.stages = {stage: median([_stage(one.timings, stage) for one in calls]) for stage in STAGES}
    row.transport = median(
        [one.seconds - sum(_stage(one.timings, stage) for stage in STAGES) for one in calls]
    )
    row.wire_bytes = round(median([one.n_bytes for one in calls]))


def _percentiles(turns: list[Turn], name: str) -> tuple[float | None, float | None]:
    found = [turn[name] for turn in turns if name in turn]
    if not found:
        return None, None
    p50, p95 = np.percentile(found, (50, 95))
    return float(p50), float(p95)


def _ratio(turns: list[Turn], name: str) -> float | None:
    found = [turn[name] / turn["floor"] for turn in turns if name in turn]
    return median(found) if found else None


def median(numbers: list[float] | list[int]) -> float:
    """The number in the middle."""
    return float(np.median(numbers))


def _stage(timings: Timings, stage: str) -> float:
    seconds: float = getattr(timings, f"{stage}_seconds")
    return seconds


def _peak_memory(bench: Bench, case: Case, n_tokens: int) -> int | None:
    """Of calls made for this alone. On a GPU it is the most since the server started."""
    if bench.worker_pid is None:
        call = bench.caller.stream_debug(_sub_requests(bench, case, n_tokens))
        return call.peak_memory_bytes - bench.weight_bytes if call.peak_memory_bytes else None
    with PeakMemory(bench.worker_pid) as peak:
        for _ in range(2 if n_tokens < 500 else 1):
            bench.caller.stream_debug(_sub_requests(bench, case, n_tokens))
    if peak.n_bytes is None or bench.ready_bytes is None:
        return None
    return peak.n_bytes - bench.ready_bytes


def ready_memory(worker_pid: int | None) -> int | None:
    """What a worker holds before the first call."""
    return None if worker_pid is None else anonymous_bytes(worker_pid)

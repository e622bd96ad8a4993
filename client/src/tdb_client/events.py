"""The events of a stream: it starts, results and objective values become ready, it finishes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass

from tdb_client.errors import CallError, IncompleteResponseError
from tdb_client.inference import AblationSpec
from tdb_client.repeating import Repeats
from tdb_client.results import (
    CallInfo,
    CircuitValues,
    EstimatedCost,
    InferenceResult,
    LossTokens,
    ProcessingResult,
    PromptTokens,
    Timings,
)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took the call up.

    Attributes:
        call: which call, which model.
        queue_seconds: how long it waited for a worker.
        prompts: every sub-request's tokens.
        estimated_cost: what it would cost; None unless only that was asked for.
        cached: whether the results come from the server's cache.
        losses: every sub-request's loss tokens; None where it has no loss, or the server is older.
        ablations: what is set in every sub-request's run, as in InferenceResult.
        backward_rules: how every sub-request's gradients go back, as in InferenceResult.
        baselines: every sub-request's baseline prompts.
    """

    call: CallInfo
    queue_seconds: float
    prompts: tuple[PromptTokens, ...]
    estimated_cost: EstimatedCost | None = None
    cached: bool = False
    losses: tuple[LossTokens | None, ...] = ()
    ablations: tuple[tuple[AblationSpec, ...], ...] = ()
    backward_rules: tuple[str, ...] = ()
    baselines: tuple[tuple[PromptTokens, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ResultReady:
    """A named result of a sub-request is whole."""

    sub_request_index: int
    name: str
    result: ProcessingResult


@dataclass(frozen=True, slots=True)
class Values:
    """A sub-request's loss, traced objective's value and what its circuit keeps; None where there is none."""

    sub_request_index: int
    loss: float | None
    traced_value: float | None
    circuit: CircuitValues | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All is sent. `peak_memory_bytes` is 0 when not known."""

    timings: Timings
    peak_memory_bytes: int


Event = Started | ResultReady | Values | Finished


def collected(
    open_stream: Callable[[float | None], Generator[Event]],
    seconds: float | None,
    on_event: Callable[[Event], object] | None,
) -> list[Event]:
    """All events of a stream; each is also given to `on_event` as it comes.

    A stream that breaks off is opened anew: then `on_event` sees another Started, and all events again.

    Args:
        open_stream: makes the call, which may take so many seconds.
        seconds: that it may take in all; None for no limit.
        on_event: called with each event.

    Raises:
        CallError: the call failed.
    """
    repeats = Repeats(seconds)
    while True:
        events: list[Event] = []
        try:
            with closing(open_stream(repeats.seconds_left)) as stream:
                for event in stream:
                    events.append(event)
                    if on_event is not None:
                        on_event(event)
            return events
        except CallError as error:
            time.sleep(repeats.pause(error, had_begun=bool(events)))


async def collected_async(
    open_stream: Callable[[float | None], AsyncGenerator[Event]],
    seconds: float | None,
    on_event: Callable[[Event], object] | None,
) -> list[Event]:
    """As `collected`, of a stream in asyncio."""
    repeats = Repeats(seconds)
    while True:
        events: list[Event] = []
        try:
            async with aclosing(open_stream(repeats.seconds_left)) as stream:
                async for event in stream:
                    events.append(event)
                    if on_event is not None:
                        on_event(event)
            return events
        except CallError as error:
            await asyncio.sleep(repeats.pause(error, had_begun=bool(events)))


def inference_results(events: Sequence[Event]) -> list[InferenceResult]:
    """What a whole stream says about every sub-request, in order.

    Raises:
        IncompleteResponseError: no event says what was asked.
    """
    started = next((one for one in events if isinstance(one, Started)), None)
    finished = next((one for one in events if isinstance(one, Finished)), None)
    if started is None or finished is None:
        raise IncompleteResponseError("the stream did not say when it started and finished")
    values = {one.sub_request_index: one for one in events if isinstance(one, Values)}
    results: list[dict[str, ProcessingResult]] = [{} for _ in started.prompts]
    for one in events:
        if isinstance(one, ResultReady):
            results[one.sub_request_index][one.name] = one.result
    return [
        InferenceResult(
            call=started.call,
            prompt=prompt,
            loss=values[index].loss if index in values else None,
            traced_value=values[index].traced_value if index in values else None,
            results=results[index],
            timings=finished.timings,
            peak_memory_bytes=finished.peak_memory_bytes,
            cached=started.cached,
            loss_tokens=started.losses[index] if started.losses else None,
            ablations=started.ablations[index],
            backward_rule=started.backward_rules[index],
            baselines=started.baselines[index],
            circuit=values[index].circuit if index in values else None,
        )
        for index, prompt in enumerate(started.prompts)
    ]

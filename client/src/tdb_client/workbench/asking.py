"""How each question is asked: with a client of any kind of channel, and answered line by line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from tdb_client.async_client import AsyncClient
from tdb_client.debug_result import debug_result, with_notes
from tdb_client.events import Event, ResultReady, Started, Values, inference_results
from tdb_client.workbench.answers import (
    Line,
    answer_line,
    expected_results,
    model_line,
    progress_line,
    started_line,
    tokens_line,
    values_line,
)
from tdb_client.workbench.body_reader import BodyReader
from tdb_client.workbench.questions import Question, read_question

Read = TypeVar("Read")
Lines = AsyncGenerator[Line]


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that the page can ask.

    Attributes:
        read: makes a question of a body; raises `QuestionError`.
        lines: asks it, and yields what the page gets as it comes; raises `TdbError`. Closing it cancels.
    """

    read: Callable[[object], Any]
    lines: Callable[[AsyncClient, Any], Lines]


@dataclass(frozen=True, slots=True)
class _Text:
    text: str
    add_bos: bool | None


def _read_nothing(body: object) -> None:
    BodyReader(body, ()).check()


def _read_text(body: object) -> _Text:
    reader = BodyReader(body, ("text", "addBos"))
    read = _Text(reader.text("text"), reader.flag("addBos"))
    reader.check()
    return read


async def _model(client: AsyncClient, _: None) -> Lines:
    yield model_line(await client.model_info())


async def _tokens(client: AsyncClient, asked: _Text) -> Lines:
    tokens = await client.tokenize(asked.text, add_bos=asked.add_bos)
    if asked.add_bos is None and tokens.prompt_adds_bos:  # as a prompt would have it
        tokens = await client.tokenize(asked.text, add_bos=True)
    yield tokens_line(tokens)


async def _debug(client: AsyncClient, question: Question) -> Lines:
    asked, model = question.sub_requests, await client.model_info()
    events: list[Event] = []
    values: dict[int, Values] = {}
    n_done, n_wanted = 0, expected_results(asked)
    async with aclosing(client.stream_debug(asked)) as stream:
        async for event in stream:
            events.append(event)
            match event:
                case Started():
                    yield started_line(event)
                    started = event
                case Values():
                    values[event.sub_request_index] = event
                    if len(values) == len(asked):
                        yield values_line(asked, started, [values[one] for one in range(len(asked))])
                case ResultReady():
                    n_done += 1
                    yield progress_line(n_done, n_wanted, event.name)

    def answer() -> Line:
        answers = zip(asked, inference_results(events), strict=True)
        return answer_line([with_notes(debug_result(*one), model) for one in answers])

    yield await asyncio.to_thread(answer)  # of long prompts it is megabytes


ROUTES = {
    "model": Route(_read_nothing, _model),
    "tokens": Route(_read_text, _tokens),
    "debug": Route(read_question, _debug),
}
"""By the last part of the address, `/v1/workbench/NAME`."""

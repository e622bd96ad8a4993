"""The main question: results are told of as they come, and the whole answer is what the report draws."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from tdb_client.async_client import AsyncClient
from tdb_client.debug_result import DEBUG_RESULTS, debug_result, with_notes
from tdb_client.events import Event, ResultReady, Started, Values, inference_results
from tdb_client.inference import Token
from tdb_client.report.data import report_data
from tdb_client.report.rounding import finite
from tdb_client.requests import DebugSubRequest
from tdb_client.results import CircuitValues
from tdb_client.token_text import loss_words, quoted
from tdb_client.workbench.model_and_tokens import token_list
from tdb_client.workbench.questions import Question, read_question
from tdb_client.workbench.route import Line, Lines, Route

N_RESULTS = len(DEBUG_RESULTS) + 1
"""Named results of a sub-request, with the totals, which older servers leave out."""


async def _debug(client: AsyncClient, question: Question) -> Lines:
    asked, model = question.sub_requests, await client.model_info()
    events: list[Event] = []
    values: dict[int, Values] = {}
    n_done = 0
    async with aclosing(client.stream_debug(asked)) as stream:
        async for event in stream:
            events.append(event)
            match event:
                case Started():
                    started = event
                    yield started_line(event)
                case Values():
                    values[event.sub_request_index] = event
                    if len(values) == len(asked):
                        yield _values_line(asked, started, [values[one] for one in range(len(asked))])
                case ResultReady():
                    n_done += 1
                    yield {
                        "event": "progress",
                        "done": n_done,
                        "of": N_RESULTS * len(asked),
                        "what": event.name,
                    }

    def answer() -> Line:
        answers = zip(asked, inference_results(events), strict=True)
        results = [with_notes(debug_result(*one), model) for one in answers]
        return {"event": "answer", "data": report_data(results)}

    yield await asyncio.to_thread(answer)  # of long prompts it is megabytes


def started_line(started: Started) -> Line:
    """The call was taken up."""
    return {
        "event": "started",
        "requestId": started.call.request_id,
        "queueSeconds": round(started.queue_seconds, 3),
        "cached": started.cached,
        "tokens": token_list(started.prompts[-1]),
    }


def circuit_numbers(circuit: CircuitValues) -> Line:
    """How much of the objective a circuit keeps."""
    return {
        "faithfulness": finite(circuit.faithfulness),
        "ofPrompt": finite(circuit.of_prompt),
        "ofBaseline": finite(circuit.of_baseline),
    }


def _values_line(asked: Sequence[DebugSubRequest], started: Started, values: Sequence[Values]) -> Line:
    """The objective of each run, which comes before most of the rest."""
    return {
        "event": "values",
        "objective": _objective(asked[-1], started),
        "runs": [
            {
                "value": finite(one.loss if request.trace is None else one.traced_value),
                "circuit": None if one.circuit is None else circuit_numbers(one.circuit),
            }
            for request, one in zip(asked, values, strict=True)
        ],
    }


def _objective(asked: DebugSubRequest, started: Started) -> str:
    if asked.trace is not None:
        return asked.trace.words(started.prompts[-1].tokens)
    loss = asked.objective
    return loss_words(loss.name, token_words(loss.target), token_words(loss.distractor))


def token_words(tokens: Sequence[Token]) -> list[str]:
    """Tokens that are asked for, in words."""
    return [quoted(one) if isinstance(one, str) else f"token {one}" for one in tokens]


DEBUG = Route(read_question, _debug)

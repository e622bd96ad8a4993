"""Asks about every line of a sweep, several at a time, and writes down what is answered."""

from __future__ import annotations

import asyncio
import math
import random
import re
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tdb_client import in_flight
from tdb_client.ablation_effects import in_words_of_nodes, requests_for_each, whole_request
from tdb_client.async_client import AsyncClient
from tdb_client.errors import CallError, InvalidValueError, NodeError, ResponseError
from tdb_client.inference import BackwardRule, chosen_loss
from tdb_client.interventions import Ablation
from tdb_client.model_info import ModelInfo
from tdb_client.requests import (
    AttentionComponent,
    DebugSubRequest,
    MlpComponent,
    ResidualStreamComponent,
    prompt_length,
    tokens_from_start,
)
from tdb_client.results import CallInfo
from tdb_client.sweep.journal import Journal, Record
from tdb_client.sweep.lines import SweepInput, SweepLine
from tdb_client.sweep.means import SCALARS
from tdb_client.token_counting import TokenCountWarning
from tdb_client.token_text import quoted

Answer = TypeVar("Answer")

N_IN_FLIGHT = 8
"""Lines that are asked about at the same time. The server runs calls that come together in one batch."""

MAX_REFUSALS = 20
"""How often a call is made again that the server was too busy for."""

_FIELD = re.compile(r"(?:sub_requests\[\d+\]\.)?([a-z]+)\w*")
_NODE = re.compile(r"nodes\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about every line.

    Attributes:
        k: nodes from each end of a ranking.
        mlp: what MLPs are taken apart into.
        attention: what attention is taken apart into.
        residual_stream: what the residual stream is taken apart into, beside the others.
        backward_rule: how gradients go back through what is not linear.
        attention_pattern_gradients: with `relp`, whether attention patterns pass gradients on.
        add_bos: as in Client.debug.
        nodes: where there are some, only the objective is asked for, with each of them ablated by itself.
    """

    k: int = 10
    mlp: MlpComponent = "neuron"
    attention: AttentionComponent = "attention_head"
    residual_stream: tuple[ResidualStreamComponent, ...] = ()
    backward_rule: BackwardRule = "gradient"
    attention_pattern_gradients: bool = False
    add_bos: bool | None = None
    nodes: tuple[Ablation, ...] = ()

    def settings(self) -> dict[str, object]:
        """What answers depend on, in plain data."""
        if self.nodes:
            return {"ablated each": [str(one) for one in self.nodes], "add_bos": self.add_bos}
        return {
            "k": self.k,
            "mlp": self.mlp,
            "attention": self.attention,
            "residual_stream": self.residual_stream,
            "backward_rule": self.backward_rule,
            "attention_pattern_gradients": self.attention_pattern_gradients,
            "add_bos": self.add_bos,
        }


def heading(lines: SweepInput, question: Question, model: ModelInfo) -> Record:
    """What a sweep depends on: none of it may change while it is under way."""
    return {
        "input": lines.digest,
        "model": model.name,
        "model digest": model.digest,
        **question.settings(),
    }


async def check(
    client: AsyncClient,
    lines: Sequence[SweepLine],
    question: Question,
    model: ModelInfo,
    on_done: Callable[[], object],
) -> dict[int, int]:
    """Has the server check every line without running it; how many tokens each prompt has, by line.

    Raises:
        CallError: the server refuses a line, or cannot be asked; fields are named `line 3, target`.
        NodeError: a node to ablate does not fit a line.
    """
    add_bos = _add_bos(question, model)
    n_tokens: dict[int, int] = {}
    n_together = model.limits.max_sub_requests or 1 + len(question.nodes)
    n_nodes = max(1, n_together - 1)

    async def look_at(line: SweepLine) -> None:
        prompt = line.words["prompt"]
        with _of_line(line):
            tokens = await _patiently(lambda: client.tokenize(prompt, add_bos=add_bos))
            if not question.nodes:
                asked = [_sub_request(line, question, add_bos)]
                await _patiently(lambda: client.estimate(asked))
        n_tokens[line.number] = prompt_length(tokens, add_bos)
        for start in range(0, len(question.nodes), n_nodes):
            nodes = question.nodes[start : start + n_nodes]
            loss = chosen_loss(line.words["target"], line.words.get("distractor", ()), None)
            baseline = line.words.get("baseline", ())
            with _of_line(line, nodes):
                several = requests_for_each(whole_request(prompt, loss, nodes, add_bos, baseline))
                await _patiently(partial(client.estimate, several[:n_together]))
        on_done()

    await in_flight.each_in_flight(lines, look_at, in_flight.allowed_in_flight(model.limits, N_IN_FLIGHT))
    return n_tokens


async def ask(
    client: AsyncClient,
    lines: Sequence[SweepLine],
    question: Question,
    model: ModelInfo,
    journal: Journal,
    on_done: Callable[[], object],
) -> None:
    """Asks about every line, in the order given, and writes the answers down as they come.

    Args:
        client: of priority sweep.
        lines: those that are not done. Neighbours of one length are fastest.
        question: what is asked.
        model: which model has to answer.
        journal: takes the answers.
        on_done: called when a line is done.

    Raises:
        CallError: a call failed for good; what is done is written down.
        ResponseError: an answer is malformed, or the server holds another model by now.
    """
    add_bos = _add_bos(question, model)

    async def answered(line: SweepLine) -> Record:
        if question.nodes:
            return await _ablated(client, line, question, add_bos, model)
        return await _explained(client, line, question, add_bos, model)

    async def one_line(line: SweepLine) -> None:
        with _of_line(line, question.nodes):
            record = await _patiently(partial(answered, line))
        journal.add(line.number, {"id": line.name, **record})
        on_done()

    await in_flight.each_in_flight(lines, one_line, _lines_in_flight(question, model))


def _lines_in_flight(question: Question, model: ModelInfo) -> int:
    """How many lines are asked about at the same time: fewer where a line takes several calls."""
    n_runs = 1 + len(question.nodes)
    n_calls = min(in_flight.N_IN_FLIGHT, math.ceil(n_runs / (model.limits.max_sub_requests or n_runs)))
    return max(1, in_flight.allowed_in_flight(model.limits, N_IN_FLIGHT) // n_calls)


async def _explained(
    client: AsyncClient, line: SweepLine, question: Question, add_bos: bool | None, model: ModelInfo
) -> Record:
    (result,) = await client.debug_many([_sub_request(line, question, add_bos)])
    _check_model(result.call, model)
    sums = result.components
    if not len(sums):
        raise ResponseError("the server gives no sums by component: it may be too old for sweeps")
    return {
        "n_tokens": len(result.prompt),
        "objective": result.loss,
        "components": {
            "names": list(sums.components),
            "direct_effect": sums.direct_effect.tolist(),
            "act_times_grad": sums.act_times_grad.tolist(),
            "write_norm": sums.write_norm.tolist(),
        },
        "nodes": [str(node) for node in result.nodes.nodes],
        **{name: result.nodes.scalar(name).tolist() for name in SCALARS},
    }


async def _ablated(
    client: AsyncClient, line: SweepLine, question: Question, add_bos: bool | None, model: ModelInfo
) -> Record:
    effects = await client.ablate_each(**line.words, nodes=question.nodes, add_bos=add_bos)
    _check_model(effects.call, model)
    return {
        "n_tokens": len(effects.prompt),
        "objective": effects.objective,
        "ablated": effects.ablated.tolist(),
    }


def _sub_request(line: SweepLine, question: Question, add_bos: bool | None) -> DebugSubRequest:
    return DebugSubRequest.of(
        **line.words,
        k=question.k,
        mlp=question.mlp,
        attention=question.attention,
        residual_stream=question.residual_stream,
        backward_rule=question.backward_rule,
        attention_pattern_gradients=question.attention_pattern_gradients,
        add_bos=add_bos,
    )


def _check_model(call: CallInfo, model: ModelInfo) -> None:
    if call.model_digest != model.digest:
        raise ResponseError(
            f"the server holds another model by now: {call.model_name}, digest {call.model_digest}"
        )


def _add_bos(question: Question, model: ModelInfo) -> bool | None:
    """Outright, where the model would put a token in front, so that nobody is warned line by line."""
    return True if question.add_bos is None and model.adds_bos else question.add_bos


def warn_of_numbers(question: Question, model: ModelInfo) -> None:
    """Warns where numbers of tokens count the one that the model puts in front of prompts."""
    numbered = [one for one in question.nodes if list(tokens_from_start(DebugSubRequest("", ablate=(one,))))]
    if numbered and question.add_bos is None and model.adds_bos:
        warnings.warn(
            f"this model puts {quoted(model.bos_token)} in front of prompts, and numbers of tokens, as in"
            f" {numbered[0].node}, count it. Say --add-bos if that is meant, or --no-add-bos",
            TokenCountWarning,
            stacklevel=2,
        )


async def _patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Makes a call, again where the server is too busy and says when to come back."""
    n_refused = 0
    while True:
        try:
            return await call()
        except CallError as error:
            n_refused += 1
            if error.retry_after is None or n_refused > MAX_REFUSALS:
                raise
            await asyncio.sleep(error.retry_after * random.uniform(1.0, 1.5))


@contextmanager
def _of_line(line: SweepLine, nodes: Sequence[Ablation] = ()) -> Iterator[None]:
    """Errors about what a line says name the line, and its field or the node."""
    where = f"line {line.number}"

    def named(path: str) -> str:
        if node := _NODE.match(path):
            return f"{where}, {nodes[int(node[1])]}"
        field = _FIELD.match(path)
        name = field[1] if field else path
        return f"{where}, {'prompt' if name == 'text' else name}"

    try:
        yield
    except CallError as error:
        violations = in_words_of_nodes(error).field_violations
        error.field_violations = tuple(replace(one, path=named(one.path)) for one in violations)
        raise
    except NodeError as error:
        raise NodeError(f"{where}: {error}") from None
    except InvalidValueError as error:
        raise InvalidValueError(f"{where}, {error.path}", error.description) from None

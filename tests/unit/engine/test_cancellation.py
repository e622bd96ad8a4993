"""Cancelled calls: their batch stops early when nobody is left, and goes on for whoever is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.node import NodeIndex
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.domain.results import Finished, NamedResult, ObjectiveValues
from tdb_server.engine import backward_pass, node_tables
from tdb_server.engine.engine import Engine
from tdb_server.engine.rank_tokens import TokenRanker
from tdb_server.engine.top_nodes import BestNodes, TopNodes

from tests.property.small_models import small_model

N_LAYERS = 3
NAME = "gpt2-deep-untied"


@pytest.fixture(scope="module")
def engine() -> Engine:
    assert small_model(NAME).config.n_layers == N_LAYERS
    return small_model(NAME).engine()


def call(call_id: str, n_sub_requests: int = 1) -> Call:
    components = (MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD)
    sub_request = inference_sub_request(DebugSubRequest((3, 4, 5), (1,), (2,), *components, 3))
    return Call(call_id, (sub_request,) * n_sub_requests)


class Cancelling:
    """Says that calls are cancelled from the n-th question about any of them on, and counts questions."""

    def __init__(self, from_question: float, *call_ids: str) -> None:
        self.from_question, self.call_ids, self.n_questions = from_question, call_ids, 0

    def __call__(self, call_id: str) -> bool:
        if call_id not in self.call_ids:
            return False
        self.n_questions += 1
        return self.n_questions >= self.from_question


def test_it_is_asked_in_every_layer_on_the_way_forward_and_back(engine: Engine) -> None:
    nobody = Cancelling(float("inf"), "a")
    events = engine.run([call("a")], nobody)
    first = next(events)
    assert isinstance(first[1], NamedResult)
    asked_forward = nobody.n_questions
    assert asked_forward >= N_LAYERS
    next(events)
    assert nobody.n_questions - asked_forward >= N_LAYERS


def test_a_call_cancelled_before_it_starts_is_given_nothing(engine: Engine) -> None:
    assert list(engine.run([call("a")], lambda _: True)) == []


@pytest.mark.parametrize("question", range(1, N_LAYERS + 1))
def test_the_forward_pass_stops_in_the_layer_where_all_are_cancelled(engine: Engine, question: int) -> None:
    cancelling = Cancelling(question, "a")
    assert list(engine.run([call("a")], cancelling)) == []
    assert cancelling.n_questions == question


def compared(call_id: str) -> Call:
    """With baselines, which are run before the batch."""
    (sub_request,) = call(call_id).sub_requests
    run = replace(sub_request.inference, baselines=((6, 7, 8), (9, 10, 11)))
    return Call(call_id, (replace(sub_request, inference=run),))


@pytest.mark.parametrize("question", [1, N_LAYERS, N_LAYERS + 1, 2 * N_LAYERS])
def test_prompts_to_compare_with_are_cancelled_like_the_batch(engine: Engine, question: int) -> None:
    """They take one question for each layer, and so does the batch behind them."""
    cancelling = Cancelling(question, "a")
    assert list(engine.run([compared("a")], cancelling)) == []
    assert cancelling.n_questions == question


def test_a_call_goes_on_without_the_one_that_was_compared(engine: Engine) -> None:
    cancelling = Cancelling(N_LAYERS + 1, "a")
    found = list(engine.run([compared("a"), call("b")], cancelling))
    assert {call_id for call_id, _ in found} == {"b"}
    assert isinstance(found[-1][1], Finished)


def test_the_backward_pass_stops(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits have left by then; no gradient arrives."""
    arrived: list[object] = []
    original = backward_pass._present

    def present(*args: object) -> object:
        arrived.append(args)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(backward_pass, "_present", present)
    is_cancelled = False
    events = engine.run([call("a")], lambda _: is_cancelled)
    _, first = next(events)
    assert isinstance(first, NamedResult)
    assert first.name == "topOutputTokenLogits"
    is_cancelled = True
    assert list(events) == []
    assert arrived == []


def test_the_choice_of_nodes_stops_between_rankings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand nodes in dozens of rows each takes a while."""
    is_cancelled, n_chosen, original = False, 0, TopNodes.best

    def best(top: TopNodes, arrays: Sequence[npt.NDArray[Any]]) -> list[BestNodes]:
        nonlocal is_cancelled, n_chosen
        n_chosen, is_cancelled = n_chosen + 1, True
        return original(top, arrays)

    events = engine.run([call("a")], lambda _: is_cancelled)
    next(events)
    monkeypatch.setattr(TopNodes, "best", best)
    assert list(events) == []
    assert n_chosen == 1


def test_the_choice_of_nodes_stops_between_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    is_cancelled, rows, original = False, [], node_tables._nodes

    def nodes(scalar: DerivedScalar, best: Sequence[BestNodes], row: int, k: int) -> Iterator[NodeIndex]:
        nonlocal is_cancelled
        is_cancelled = True
        rows.append(row)
        return original(scalar, best, row, k)

    events = engine.run([call("a", n_sub_requests=3)], lambda _: is_cancelled)
    for _ in range(3):
        next(events)  # logits
    monkeypatch.setattr(node_tables, "_nodes", nodes)
    assert list(events) == []
    assert set(rows) == {0}


def test_the_ranking_of_tokens_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an engine that remembers no direction yet."""
    is_cancelled, n_parts, original = False, 0, TokenRanker._rank_missing

    def rank_missing(*args: Any) -> Iterator[Any]:
        nonlocal is_cancelled, n_parts
        for part in original(*args):
            n_parts, is_cancelled = n_parts + 1, True
            yield part

    monkeypatch.setattr(TokenRanker, "_rank_missing", rank_missing)
    events = small_model(NAME).engine().run([call("a", n_sub_requests=3)], lambda _: is_cancelled)
    assert not any(isinstance(event, Finished) for _, event in events)
    assert n_parts == 1


@pytest.mark.parametrize("n_events", range(1, 9))
def test_no_event_follows_a_cancellation(engine: Engine, n_events: int) -> None:
    """Wherever it comes: among logits, objectives, rankings or token lists."""
    is_cancelled = False
    events = engine.run([call("a", n_sub_requests=2)], lambda _: is_cancelled)
    for _ in range(n_events):
        next(events)
    is_cancelled = True
    assert list(events) == []


@pytest.mark.parametrize("cancel_first", [True, False])
def test_other_calls_of_the_batch_are_answered(engine: Engine, cancel_first: bool) -> None:
    gone, kept = ("a", "b") if cancel_first else ("b", "a")
    complete = [kinds(event) for _, event in engine.run([call(kept)], lambda _: False)]
    found = list(engine.run([call("a"), call("b")], lambda call_id: call_id == gone))
    assert {call_id for call_id, _ in found} == {kept}
    assert [kinds(event) for _, event in found] == complete
    assert isinstance(found[-1][1], Finished)


def kinds(event: object) -> tuple[Callable[..., object], str | None]:
    assert isinstance(event, NamedResult | ObjectiveValues | Finished)
    return type(event), event.name if isinstance(event, NamedResult) else None

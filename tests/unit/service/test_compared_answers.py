"""What answers say of baselines, values and circuits, and what they are reckoned to cost."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tdb_server.domain.hook_point import HookPoint
from tdb_server.domain.results import CircuitValues, ObjectiveValues
from tdb_server.service.enum_names import HOOK_POINTS
from tdb_server.workers.ticket import Event
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest

from tests.unit.service.infer_changes import HEAD
from tests.unit.service.test_call_events import Lossy, service, service_of
from tests.unit.service.test_compared_requests_refused import (
    BASELINE,
    OTHER_PROMPT,
    WHOLE_HEAD,
    ablation,
    compared,
    only,
)
from tests.unit.service.tiny_requests import N_TOKENS, TOKENIZER, debug, node


class OfCircuits(Lossy):
    """Answers with values of a circuit."""

    def __init__(self, circuit: CircuitValues) -> None:
        super().__init__(())
        self._circuit = circuit

    async def submit(self, call, cost, terms) -> AsyncIterator[Event]:
        async for event in super().submit(call, cost, terms):
            if isinstance(event, ObjectiveValues):
                event = ObjectiveValues(event.sub_request_index, event.loss, None, self._circuit)
            yield event


def request() -> DebugRequest:
    pair = ablation(node(HEAD, 1, 4, 2, 0), attended_to_token_only=True, value_type=BASELINE)
    return debug(compared(OTHER_PROMPT, OTHER_PROMPT), pair, only(WHOLE_HEAD))


@pytest.mark.parametrize(("of_baseline", "faithfulness"), [(0.5, 2 / 3), (2.0, None)])
async def test_unary_and_streamed(of_baseline: float, faithfulness: float | None) -> None:
    asked = service_of(OfCircuits(CircuitValues(1.5, 2.0, of_baseline)))
    (answer,) = (await asked.Debug(request(), None)).sub_responses
    streamed = [message async for message in asked.StreamDebug(request(), None)]
    (tokens,) = streamed[0].started.sub_requests
    (values,) = (one.values for one in streamed if one.HasField("values"))
    for told in (answer, values):
        circuit = told.circuit
        assert (circuit.objective, circuit.objective_of_prompt) == (1.5, 2.0)
        assert circuit.objective_of_baseline == of_baseline
        assert circuit.HasField("faithfulness") == (faithfulness is not None)
        assert circuit.faithfulness == pytest.approx(faithfulness or 0)
    for told in (answer, tokens):
        assert len(told.baselines) == 2
        assert list(told.baselines[0].token_ids) == list(TOKENIZER.encode(OTHER_PROMPT))
        assert "".join(told.baselines[0].token_strings) == OTHER_PROMPT
        pair = told.ablation_specs[0]
        assert pair.index.activation_location_type == HOOK_POINTS.numbers[HookPoint.ATTN_V_OUT]
        assert (pair.value_type, pair.attended_to_token) == (BASELINE, 2)
        assert not told.ablation_specs[1].HasField("attended_to_token")


async def test_nothing_is_said_where_nothing_is_compared() -> None:
    (answer,) = (await service().Debug(debug(), None)).sub_responses
    assert not answer.baselines
    assert not answer.HasField("circuit")


async def test_baselines_and_circuits_are_reckoned_with() -> None:
    costs = []
    for changes in ((), (compared(OTHER_PROMPT),), (compared(OTHER_PROMPT), only(WHOLE_HEAD))):
        asked = debug(*changes)
        asked.validate_only = True
        costs.append((await service().Debug(asked, None)).estimated_cost.activation_bytes)
    assert costs == sorted(set(costs))
    assert len(TOKENIZER.encode(OTHER_PROMPT)) == N_TOKENS

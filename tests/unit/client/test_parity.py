"""What Client can, AsyncClient can as well: the same methods, words, answers, errors and documents."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from tdb_client import (
    AsyncClient,
    Client,
    DebugSubRequest,
    EdgesSubRequest,
    InferenceSubRequest,
    Loss,
    TdbError,
)
from tdb_client.circuit_search import CircuitQuestion
from tdb_client.token_lists import TokenLists

from tests.unit.client.fake_service import BROKEN, BUSY, REFUSED, FakeService, debug_results

Fake = tuple[str, FakeService]

ASKED = DebugSubRequest.of("p", " Mary", " John")
OF_EDGES = EdgesSubRequest.of("p", " Mary", baseline="q", method="eap_ig", steps=3)
CALLS: dict[str, Callable[[Any], Any]] = {
    "debug": lambda client: client.debug("p", " Mary", ablate="L1 head 2 @ -1", request_id="mine"),
    "debug_many": lambda client: client.debug_many([ASKED, ASKED]),
    "ablate_each": lambda client: client.ablate_each(
        "p", nodes=["L1 head 2 @ -1", "L0 neuron 5 @ 2"], loss=Loss("log_prob", " Mary", token=2)
    ),
    "with_attention": lambda client: client.with_attention(debug_results(ASKED), n_heads=3),
    "circuit": lambda client: client.circuit("p", " Mary", baseline="q"),
    "stream_circuit": lambda client: client.stream_circuit(
        CircuitQuestion("p", (" Mary",), baseline=("q",), max_calls=2)
    ),
    "infer": lambda client: client.infer([InferenceSubRequest("p")]),
    "edges": lambda client: client.edges("p", " Mary", [" John", 7], baseline=["q", "r"], k=7, matrix=True),
    "edges_many": lambda client: client.edges_many([OF_EDGES, OF_EDGES], request_id="mine"),
    "stream_edges": lambda client: client.stream_edges([OF_EDGES]),
    "stream_debug": lambda client: client.stream_debug([ASKED]),
    "stream_infer": lambda client: client.stream_infer([InferenceSubRequest("p")]),
    "estimate": lambda client: client.estimate([ASKED]),
    "model_info": lambda client: client.model_info(),
    "tokenize": lambda client: client.tokenize("x"),
    "chat_prompt": lambda client: client.chat_prompt("Hello", system="Be brief."),
    "detokenize": lambda client: client.detokenize([1, 2]),
    "health": lambda client: client.health(),
    "close": lambda client: client.close(),
}


def methods(kind: type) -> dict[str, str]:
    """Public methods and their signatures."""
    return {
        name: str(inspect.signature(method)).replace("AsyncGen", "Gen")
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") or name == "__init__"
    }


def assert_same(first: object, second: object) -> None:
    """Equal, arrays and all."""
    assert type(first) is type(second)
    if is_dataclass(first):
        for one in fields(first):
            assert_same(getattr(first, one.name), getattr(second, one.name))
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, dict):
        assert_same(list(first), list(second))  # type: ignore[call-overload]
        assert_same(list(first.values()), list(second.values()))  # type: ignore[attr-defined]
    elif isinstance(first, list | tuple | TokenLists):
        assert len(first) == len(second)  # type: ignore[arg-type]
        for one, other in zip(first, second, strict=True):  # type: ignore[call-overload]
            assert_same(one, other)
    else:
        assert first == second


def test_methods_and_words_are_the_same() -> None:
    assert methods(Client) == methods(AsyncClient)
    assert CALLS.keys() | {"__init__", "workbench"} == methods(Client).keys()


def test_every_method_says_what_it_does() -> None:
    for name in [*CALLS, "workbench"]:
        for kind in (Client, AsyncClient):
            assert len(inspect.getdoc(getattr(kind, name)) or "") > 20
    assert "ablate=[head(23, 1, token=-1)" in (inspect.getdoc(Client.debug) or "")
    assert "trace=neuron(20, 426, token=-1)" in (inspect.getdoc(Client.debug) or "")


@pytest.mark.parametrize("name", CALLS)
async def test_answers_are_the_same(fake: Fake, name: str) -> None:
    call = CALLS[name]
    with Client(fake[0]) as client:
        expected = call(client)
        if inspect.isgenerator(expected):
            expected = list(expected)
    async with AsyncClient(fake[0]) as other:
        found = call(other)
        found = [event async for event in found] if inspect.isasyncgen(found) else await found
    assert_same(found, expected)


@pytest.mark.parametrize("prompt", [REFUSED, BUSY, BROKEN])
async def test_errors_are_the_same(fake: Fake, prompt: str) -> None:
    with Client(fake[0]) as client, pytest.raises(TdbError) as expected:
        client.debug(prompt, " Mary")
    async with AsyncClient(fake[0]) as other:
        with pytest.raises(TdbError) as found:
            await other.debug(prompt, " Mary")
    assert type(found.value) is type(expected.value)
    assert str(found.value) == str(expected.value)
    assert vars(found.value) == vars(expected.value)


async def test_events_are_told_as_they_come(fake: Fake) -> None:
    told: list[object] = []
    async with AsyncClient(fake[0]) as client:
        await client.debug("p", " Mary", on_event=told.append)
    also: list[object] = []
    with Client(fake[0]) as one:
        one.debug("p", " Mary", on_event=also.append)
    assert [type(event) for event in told] == [type(event) for event in also]

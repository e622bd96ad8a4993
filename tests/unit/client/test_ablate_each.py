"""The objective with each of many nodes ablated by itself: what is asked for, and how it is read."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tdb_client import (
    Ablation,
    AsyncClient,
    CallError,
    Client,
    InvalidRequestError,
    InvalidValueError,
    Loss,
    NodeError,
    TokenCountWarning,
    head,
    neuron,
)
from tdb_client.in_flight import N_IN_FLIGHT

from tests.unit.client.fake_service import REFUSED, SLOW, FakeService

Fake = tuple[str, FakeService]
NODES = [
    head(1, 2, token=-1),
    "L1 head 3 @ -1 -> 0",
    "L0 neuron 5 @ 2 = 2.5",
    Ablation(neuron(0, 6, token=0)),
]


def infer_calls(service: FakeService) -> list[Any]:
    return [one for one in service.requests if hasattr(one, "sub_requests")]


def test_each_node_is_ablated_by_itself(fake: Fake) -> None:
    with Client(fake[0]) as client:
        effects = client.ablate_each("p", " Mary", [" John", 9], NODES, request_id="mine")
    (call,) = infer_calls(fake[1])
    specs = [one.inference_spec.ablation_specs for one in call.sub_requests]
    assert [len(one) for one in specs] == [0, 1, 1, 1, 1]
    assert [one[0].value for one in specs[1:]] == [0, 0, 2.5, 0]
    assert [axis.index for axis in specs[1][0].index.tensor_indices] == [3, 0, 2]
    assert specs[1][0].index.tensor_indices[1].all
    assert not any(one.processing_specs for one in call.sub_requests)
    loss = call.sub_requests[2].inference_spec.loss_fn_config
    assert (loss.target_tokens, loss.distractor_tokens, loss.distractor_token_ids) == (
        [" Mary"],
        [" John"],
        [9],
    )
    assert effects.objective == 3.0
    np.testing.assert_allclose(effects.ablated, 3 - np.array([34, 35, 37 + 160, 38]) / 64)
    np.testing.assert_allclose(effects.change, effects.ablated - 3)
    spelled = ["L1 head 2 @ 3", "L1 head 3 @ 3 -> 0", "L0 neuron 5 @ 2 = 2.5", "L0 neuron 6 @ 0"]
    assert [str(one) for one in effects.ablations] == spelled
    assert effects.call.request_id == "mine"
    assert (
        repr(effects) == "<AblationEffects: logit ' Mary' - ' John', ' [bold]the' (token 9) = 3.000, 4 nodes>"
    )
    assert effects.words[1] == "L1 head 3, ' to' → 'When'"


def test_one_node_and_none(fake: Fake) -> None:
    with Client(fake[0]) as client:
        assert client.ablate_each("p", " Mary", nodes="L0 neuron 5 @ 2").change.shape == (1,)
        effects = client.ablate_each("p", " Mary")
    assert (effects.objective, len(effects), effects.change.shape) == (3.0, 0, (0,))


async def test_many_nodes_are_many_calls_in_order(fake: Fake) -> None:
    server, service = fake
    service.max_sub_requests, service.n_affordable = 5, 4
    nodes = [neuron(0, number, token=-1) for number in range(33)]
    with Client(server) as client:
        effects = client.ablate_each("p", " Mary", nodes=nodes)
    sizes = sorted(len(one.sub_requests) for one in infer_calls(service))
    assert sum(sizes) == 34 + 6 * 5  # six calls of five were refused, and made in two halves
    np.testing.assert_allclose(effects.change, -0.5 - np.arange(33) / 64)
    async with AsyncClient(server) as other:
        again = await other.ablate_each("p", " Mary", nodes=nodes, request_id="mine")
    np.testing.assert_array_equal(again.ablated, effects.ablated)
    ids = {one.request_id for one in infer_calls(service)[-19:]}
    assert {"mine", "mine-2", "mine-2-2", "mine-7"} <= ids


def test_errors_name_the_nodes(fake: Fake) -> None:
    with Client(fake[0]) as client:
        with pytest.raises(NodeError, match="token -9 does not exist") as wrong:
            client.ablate_each("p", " Mary", nodes=["L0 neuron 5 @ 2", "L0 neuron 5 @ -9"])
        assert wrong.value.path == "nodes[1]"
        with pytest.raises(NodeError, match="'L0 nron' is not a node"):
            client.ablate_each("p", " Mary", nodes="L0 nron")
        with pytest.raises(NodeError, match="embedding @ 1 cannot be ablated"):
            client.ablate_each("p", " Mary", nodes="embedding @ 1")
        with pytest.raises(InvalidValueError, match=r"^loss: takes the place of target and distractor"):
            client.ablate_each("p", " Mary", loss=Loss("kl_from_baseline"))
        with pytest.raises(InvalidValueError, match=r"target\[0\]: 5.5 is neither"):
            client.ablate_each("p", 5.5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match=r"^prompt: is a joke; target_tokens: is two tokens$"):
            client.ablate_each(REFUSED, " Mary")


@pytest.mark.parametrize("allowed", [0, 2])
async def test_as_many_calls_at_a_time_as_are_allowed(fake: Fake, allowed: int) -> None:
    server, service = fake
    service.max_sub_requests, service.max_concurrent_calls, service.seconds = 2, allowed, 0.03
    with Client(server) as client:
        client.ablate_each("p", " Mary", nodes=["L0 neuron 5 @ 2"] * 15)
        assert 1 < service.most_open <= (allowed or N_IN_FLIGHT)
    service.most_open = 0
    async with AsyncClient(server) as other:
        await other.ablate_each("p", " Mary", nodes=["L0 neuron 5 @ 2"] * 15)
    assert 1 < service.most_open <= (allowed or N_IN_FLIGHT)


def test_frames_have_a_row_per_node(fake: Fake) -> None:
    pytest.importorskip("pandas")
    with Client(fake[0]) as client:
        frame = client.ablate_each("p", " Mary", nodes=NODES).to_frame()
    assert list(frame["node"])[1:3] == ["L1 head 3 @ 3 -> 0", "L0 neuron 5 @ 2"]
    assert list(frame["attended_to"].isna()) == [True, False, True, True]
    assert list(frame["value"]) == [0, 0, 2.5, 0]
    assert frame["change"][0] == frame["objective"][0] - 3


def test_token_numbers_are_warned_of_once(fake: Fake) -> None:
    fake[1].adds_bos, fake[1].max_sub_requests = True, 2
    nodes = [neuron(0, 5, token=token) for token in (1, 2, 3)] * 5
    with Client(fake[0]) as client, pytest.warns(TokenCountWarning) as warned:
        client.ablate_each("p", " Mary", nodes=nodes)
    assert len(warned) == 1
    assert re.search(r"puts 'When' in front of prompts", str(warned[0].message))


def test_a_closed_client_leaves_nothing_running(fake: Fake) -> None:
    """As after an interrupt: threads that still wait for an answer end with the connection."""

    def running() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith("tdb-call")]

    fake[1].max_sub_requests = 1
    deadline = time.monotonic() + 20
    with Client(fake[0]) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.ablate_each, SLOW, " Mary", nodes=["L0 neuron 5 @ 2"] * 3)
        while not infer_calls(fake[1]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running()
        client.close()
        assert isinstance(waiting.exception(10), CallError | ValueError)
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running()

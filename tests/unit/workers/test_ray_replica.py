"""The replica itself, without Ray around it: it is an ordinary class."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import pickle
import threading
from pathlib import Path

import pytest
from tdb_server.domain.call import Call
from tdb_server.domain.debug import inference_sub_request
from tdb_server.domain.requests import AttentionComponent, DebugSubRequest, MlpComponent
from tdb_server.domain.results import Finished
from tdb_server.service.served_model import read_tokenizer
from tdb_server.workers import ray_replica
from tdb_server.workers.messages import BatchEnded, CallProgress, Configuration, RunBatch
from tdb_server.workers.ray_replica import Replica, ReplicaBroken

TINY_MODEL = Path(__file__).parents[2] / "fixtures" / "tiny-a"
SUB_REQUEST = inference_sub_request(
    DebugSubRequest((1, 2, 3), (4,), (), MlpComponent.NEURON, AttentionComponent.ATTENTION_HEAD, 5)
)

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def replica() -> Replica:
    return Replica(Configuration(str(TINY_MODEL), (), "cpu", 0, "float32", 1))


def batch(*call_ids: str, n_rows: int = 1) -> RunBatch:
    """Under a number of its own: what ended may be taken off the list a little later."""
    return RunBatch(next(NUMBERS), tuple(Call(call_id, (SUB_REQUEST,) * n_rows) for call_id in call_ids))


def digest(replica: Replica) -> str:
    _, ready = replica.describe()
    return ready.info.digest


async def said(replica: Replica, what: RunBatch, front: str = "front") -> list[CallProgress | BatchEnded]:
    stream = replica.run(front, digest(replica), what)
    return [pickle.loads(piece) async for pieces in stream for piece in pieces]


def finished(messages: list[CallProgress | BatchEnded]) -> list[str]:
    return [
        one.call_id for one in messages if isinstance(one, CallProgress) and isinstance(one.event, Finished)
    ]


async def test_a_batch_is_run_to_its_end(replica):
    both = batch("1", "2")
    messages = await said(replica, both)
    assert finished(messages) == ["1", "2"]
    assert messages[-1] == BatchEnded(both.batch_id, None)


async def test_a_call_is_taken_out_of_its_batch(replica):
    both = batch("1", "2", n_rows=20)
    reading = asyncio.create_task(said(replica, both))
    await asyncio.sleep(0)  # until it has begun
    replica.cancel_call("front", both.batch_id, "1")
    assert finished(await reading) == ["2"]


async def test_fronts_number_their_batches_and_calls_alike(replica):
    alone = batch("1", n_rows=20)
    reading = asyncio.create_task(said(replica, alone, front="one"))
    await asyncio.sleep(0)
    replica.cancel_call("another", alone.batch_id, "1")
    assert finished(await reading) == ["1"]


async def test_what_nobody_reads_stops(replica):
    stream = replica.run("front", digest(replica), batch("1", n_rows=50))
    await anext(stream)
    await stream.aclose()
    replica.check_health()
    async with asyncio.timeout(10):
        assert finished(await said(replica, batch("2"))) == ["2"]


async def test_a_batch_that_does_not_stop_makes_it_unhealthy(replica, monkeypatch):
    monkeypatch.setattr(ray_replica, "HANG_SECONDS", 0.0)
    stream = replica.run("front", digest(replica), batch("1", n_rows=50))
    await anext(stream)
    replica.check_health()  # somebody reads
    await stream.aclose()
    with pytest.raises(ReplicaBroken, match="does not stop"):
        replica.check_health()
    monkeypatch.undo()
    await said(replica, batch("2"))
    replica.check_health()


async def test_a_batch_that_makes_no_progress_makes_it_unhealthy(monkeypatch):
    slow = Configuration(str(TINY_MODEL), (), "cpu", 0, "float32", 1, step_seconds=0.2)
    hanging = Replica(slow)
    goes_on = threading.Event()
    monkeypatch.setattr(ray_replica, "run_batch", lambda *_: goes_on.wait() and None)
    reading = asyncio.create_task(said(hanging, batch("1")))
    await asyncio.sleep(0)
    hanging.check_health()
    await asyncio.sleep(0.3)
    with pytest.raises(ReplicaBroken, match="no progress"):
        hanging.check_health()
    goes_on.set()
    await reading
    hanging.check_health()


async def test_calls_for_another_model_are_refused():
    replica = Replica(Configuration(str(TINY_MODEL), (), "cpu", 0, "float32", 1))
    replica.check_health()
    with pytest.raises(ReplicaBroken):
        await anext(replica.run("front", "another digest", batch("1")))
    with pytest.raises(ReplicaBroken):
        replica.check_health()


def test_a_front_on_another_machine_gets_the_tokenizer(replica):
    _, ready = replica.describe()
    elsewhere = dataclasses.replace(ready, tokenizer_folder=Path("/no/such/folder"))
    here = dataclasses.replace(ready, tokenizer_files=None)
    text = "When Mary<|endoftext|>"
    assert read_tokenizer(elsewhere).encode(text) == read_tokenizer(here).encode(text)
    assert read_tokenizer(elsewhere).bos_token_id == 999

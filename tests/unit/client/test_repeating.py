from __future__ import annotations

import time

import pytest
from tdb_client import AsyncClient, CallError, Client, DebugSubRequest, Finished, Started
from tdb_client.connection import Connection
from tdb_client.events import Event
from tdb_client.repeating import MAX_REPEATS, Repeats

from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]


def test_an_answer_that_broke_off_is_asked_for_again(fake: Fake) -> None:
    server, service = fake
    seen: list[Event] = []
    with Client(server) as client:
        undisturbed = client.debug("p", " Mary")
        service.n_broken_off = 2
        result = client.debug("p", " Mary", on_event=seen.append)
    assert result.loss == undisturbed.loss
    assert result.nodes.words == undisturbed.nodes.words
    assert sum(isinstance(one, Started) for one in seen) == 3
    assert [type(one) for one in seen].count(Finished) == 1
    assert service.streams_were_whole == [True, False, False, True]


async def test_an_answer_that_broke_off_is_asked_for_again_in_asyncio(fake: Fake) -> None:
    server, service = fake
    service.n_broken_off = 1
    async with AsyncClient(server) as client:
        await client.debug("p", " Mary")
    assert service.streams_were_whole == [False, True]


def test_it_is_not_asked_for_again_without_end(fake: Fake) -> None:
    server, service = fake
    service.n_broken_off = 100
    with Client(server) as client, pytest.raises(CallError, match="Socket closed"):
        client.debug("p", " Mary")
    assert len(service.streams_were_whole) == MAX_REPEATS + 1


def test_who_reads_the_stream_is_told_that_it_broke_off(fake: Fake) -> None:
    server, service = fake
    service.n_broken_off = 1
    with Client(server) as client, pytest.raises(CallError, match="Socket closed"):
        list(client.stream_debug([DebugSubRequest("p", (" Mary",))]))
    assert service.streams_were_whole == [False]


def error(status: str, reason: str | None = None) -> CallError:
    return CallError(status, "words", reason=reason)


@pytest.mark.parametrize(
    ("failure", "had_begun"),
    [
        (error("UNAVAILABLE"), False),  # gRPC has tried that itself
        (error("INTERNAL", "INTERNAL"), True),
        (error("INTERNAL", "INTERNAL"), False),
        (error("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"), True),
        (error("DEADLINE_EXCEEDED"), True),
        (error("CANCELLED"), True),
    ],
)
def test_what_would_fail_again_is_not_repeated(failure: CallError, had_begun: bool) -> None:
    with pytest.raises(CallError) as raised:
        Repeats(10.0).pause(failure, had_begun=had_begun)
    assert raised.value is failure


@pytest.mark.parametrize(
    "failure",
    [error("UNAVAILABLE", "WORKER_DIED"), error("UNAVAILABLE"), error("INTERNAL"), error("UNKNOWN")],
)
def test_a_lost_server_is_reason_to_repeat(failure: CallError) -> None:
    repeats = Repeats(None)
    assert 0.1 < repeats.pause(failure, had_begun=True) <= 0.4
    assert repeats.seconds_left is None


@pytest.mark.parametrize("status", ["INTERNAL", "UNKNOWN", "UNAVAILABLE"])
def test_a_server_may_be_lost_before_the_first_message(status: str) -> None:
    """When the headers have come, gRPC does not repeat the call."""
    failure = CallError(status, "Stream removed (Socket closed)")
    assert Repeats(None).pause(failure, had_begun=False) > 0.1


def test_all_attempts_share_the_time() -> None:
    repeats = Repeats(0.5)
    repeats.pause(error("UNAVAILABLE"), had_begun=True)
    time.sleep(0.05)
    assert repeats.seconds_left is not None
    assert repeats.seconds_left < 0.46
    with pytest.raises(CallError):  # the second pause may last longer than what is left
        Repeats(0.1).pause(error("UNAVAILABLE"), had_begun=True)


@pytest.mark.parametrize(
    ("server", "is_balanced", "is_local"),
    [
        ("127.0.0.1:50051", False, True),
        ("fronts.example:50051", False, False),
        ("dns:///localhost:50051", True, True),
        ("dns:///fronts.example:50051", True, False),
        ("dns://127.0.0.1:53/fronts.example:50051", True, False),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True, True),
        ("ipv4:127.0.0.1:1,10.0.0.7:2", True, False),
        ("ipv6:[::1]:1", True, True),
        ("unix:/run/tdb", False, True),
    ],
)
def test_targets(server: str, is_balanced: bool, is_local: bool) -> None:
    connection = Connection(server)
    assert (connection.is_balanced, connection.is_local) == (is_balanced, is_local)

"""Who gets how much of the devices' time, and who waits how long, in a time of its own."""

from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tdb_server.domain.caller import Caller
from tdb_server.domain.priority import Priority

from tests.unit.workers.shared_devices import Client, SharedDevices

LIGHT, HEAVY = 0.02, 4.0


def light(name: str = "light", **fields: object) -> Client:
    return Client(Caller(name), LIGHT, pause=0.05, **fields)


def percentile(client: Client, percent: float) -> float:
    return sorted(client.latencies)[int(percent / 100 * (len(client.latencies) - 1))]


@pytest.mark.parametrize("pause", [0.0, 0.05, 3.0])
def test_a_light_caller_waits_for_one_heavy_call_and_no_more(pause):
    one = Client(Caller("light"), LIGHT, pause=pause)
    crowd = [Client(Caller(f"heavy {i}"), HEAVY, pause=0.01) for i in range(8)]
    SharedDevices([one, *crowd]).run(200)
    assert percentile(one, 95) <= 3 * LIGHT + HEAVY


def test_connections_of_one_caller_take_turns_as_callers_do():
    """Without tokens all programs of a machine are one caller."""
    clients = [Client(Caller("here", connection=str(i)), HEAVY, pause=0.01) for i in range(8)]
    one = Client(Caller("here", connection="light"), LIGHT, pause=0.05)
    SharedDevices([one, *clients]).run(200)
    assert percentile(one, 95) <= 3 * LIGHT + HEAVY


def test_a_light_caller_beside_many_calls_waits_for_a_batch_and_a_small_one():
    one, flood = light(), [Client(Caller("flood"), seconds, n_at_once=64) for seconds in (0.02, 0.4)]
    SharedDevices([one, *flood], max_seconds=2.0).run(200)
    assert percentile(one, 95) <= 2.0 + 16 * LIGHT + 0.01


def test_many_connections_get_no_more_than_one():
    greedy = [Client(Caller("greedy", connection=str(i)), 0.5) for i in range(9)]
    modest = Client(Caller("modest"), 0.5, n_at_once=2)
    devices = SharedDevices([*greedy, modest])
    devices.run(200)
    assert devices.busy["modest"] == pytest.approx(devices.busy["greedy"], rel=0.03)


def test_time_counts_and_not_calls():
    few, many = Client(Caller("few"), 2.0, n_at_once=2), Client(Caller("many"), 0.1, n_at_once=30)
    devices = SharedDevices([few, many])
    devices.run(400)
    assert devices.busy["few"] == pytest.approx(devices.busy["many"], rel=0.03)


def test_what_is_underestimated_is_charged_in_full():
    """Heavy calls that run alone: their time is known exactly once they have ended."""
    honest = Client(Caller("honest"), 3.0, n_at_once=2)
    cunning = Client(Caller("cunning"), 3.0, n_at_once=2, wrong_by=20)
    devices = SharedDevices([honest, cunning], max_seconds=0.1)
    devices.run(600)
    assert devices.busy["cunning"] == pytest.approx(devices.busy["honest"], rel=0.05)


@pytest.mark.parametrize("priority", Priority)
def test_what_is_overestimated_costs_little_of_a_share(priority):
    """Not even one who never has a second call waiting, and so begins anew with each."""
    others = [Client(Caller(str(i)), 0.5, n_at_once=2) for i in range(2)]
    one = Client(Caller("one"), 0.5, wrong_by=0.2, priority=priority)
    devices = SharedDevices([*others, one], max_seconds=0.1)
    devices.run(400)
    share = 0.1 if priority is Priority.SWEEP else 1 / 3
    assert one.busy / 400 >= 0.75 * share


def test_who_comes_back_after_a_pause_has_saved_up_nothing():
    busy, late = Client(Caller("busy"), 1.0, n_at_once=2), Client(Caller("late"), 1.0, n_at_once=2)
    devices = SharedDevices([busy])
    devices.run(200)
    before = busy.busy
    devices.joins(late, at=devices.now)
    devices.run(200)
    assert busy.busy - before == pytest.approx(late.busy, rel=0.05)


def test_interactive_calls_go_before_sweeps_which_get_their_tenth():
    sweep = Client(Caller("sweep"), 0.5, n_at_once=8, priority=Priority.SWEEP)
    crowd = Client(Caller("crowd"), 0.5, n_at_once=8)
    devices = SharedDevices([sweep, crowd], max_seconds=0.5)
    devices.run(400)
    assert devices.busy["sweep"] / 400 == pytest.approx(0.1, rel=0.1)
    one = light()
    SharedDevices([Client(Caller("sweep"), 0.5, n_at_once=8, priority=Priority.SWEEP), one]).run(200)
    assert percentile(one, 95) <= 2.0 + 3 * LIGHT  # a whole batch of sweeps, and itself


def test_equal_calls_of_eight_callers_still_share_batches():
    clients = [Client(Caller(str(i)), 0.1, pause=0.001) for i in range(8)]
    devices = SharedDevices(clients)
    devices.run(100)
    assert mean(len(batch) for batch in devices.batches) == pytest.approx(4, rel=0.1)  # all that wait


weights = st.sampled_from([0.5, 1.0, 2.0, 3.0])


@settings(max_examples=15, deadline=None)
@given(
    crowd=st.lists(st.tuples(weights, st.floats(0.2, 4.0), st.integers(1, 4)), min_size=2, max_size=6),
    n_workers=st.integers(1, 2),
)
def test_shares_converge_to_the_weights(crowd, n_workers):
    """Of callers who always have more waiting than all workers can take, and whose calls run alone."""
    clients = [
        Client(Caller(str(i), weight=weight), seconds, n_at_once=n_workers + n)
        for i, (weight, seconds, n) in enumerate(crowd)
    ]
    devices = SharedDevices(clients, n_workers, max_seconds=0.001)
    seconds = 400.0
    devices.run(seconds)
    total_weight = sum(weight for weight, _, _ in crowd)
    for client in clients:
        share = seconds * n_workers * client.caller.weight / total_weight
        # A few of the longest calls: what is being run, and how far one may be ahead.
        assert abs(client.busy - share) <= 4.0 * (n_workers + len(crowd)) * 2


@settings(max_examples=15, deadline=None)
@given(
    crowd=st.lists(
        st.tuples(st.floats(0.1, 4.0), st.integers(1, 6), st.floats(0.0, 1.0), st.floats(0.2, 5.0)),
        min_size=1,
        max_size=8,
    ),
    own=st.floats(0.1, 4.0),
    priority=st.sampled_from(Priority),
)
def test_nobody_starves(crowd, own, priority):
    """However others behave, and however wrong their estimates are: also not beside ever new callers."""
    clients = [
        Client(Caller(str(i)), seconds, n_at_once=n, pause=pause, wrong_by=wrong_by)
        for i, (seconds, n, pause, wrong_by) in enumerate(crowd)
    ]
    one = Client(Caller("one"), own, priority=priority)
    devices = SharedDevices([*clients, one])
    seconds = 300.0
    for i in range(int(seconds)):
        devices.joins(Client(Caller(f"new {i}"), 0.1, pause=2 * seconds), at=float(i))
    devices.run(seconds)
    fraction = 0.1 if priority is Priority.SWEEP else 1 / (len(crowd) + 3)
    longest = max(sum(client.seconds for client in batch) for batch in devices.batches)
    # A call waits for what runs when it comes, and again when its turn comes, and then for its share.
    assert len(one.latencies) >= seconds / (2 * longest + 2 * own / fraction) - 1

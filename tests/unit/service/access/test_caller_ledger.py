from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdb_server.domain.caller import Caller, CallerLimits
from tdb_server.errors import OverLimit
from tdb_server.service.access.caller_ledger import CallerLedger


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_calls_at_the_same_time():
    ledger, caller = CallerLedger(), Caller("alice", CallerLimits(max_concurrent_calls=2))
    with ExitStack() as open_calls:
        open_calls.enter_context(ledger.one_call(caller))
        open_calls.enter_context(ledger.one_call(caller))
        with pytest.raises(OverLimit) as refused, ledger.one_call(caller):
            pass
        assert (refused.value.reason, refused.value.retry_after_seconds) == ("TOO_MANY_CONCURRENT_CALLS", 1.0)
        with ledger.one_call(Caller("bob", CallerLimits(max_concurrent_calls=1))):
            pass
    with ledger.one_call(caller):
        pass


def test_a_call_that_fails_makes_room():
    ledger, caller = CallerLedger(), Caller("alice", CallerLimits(max_concurrent_calls=1))
    for _ in range(3):
        with suppress(ValueError), ledger.one_call(caller):
            raise ValueError


def test_calls_in_a_minute():
    clock = Clock()
    ledger, caller = CallerLedger(clock), Caller("alice", CallerLimits(calls_per_minute=2))
    for clock.seconds in (0.0, 20.0):
        with ledger.one_call(caller):
            pass
    clock.seconds = 50.0
    with pytest.raises(OverLimit) as refused, ledger.one_call(caller):
        pass
    assert refused.value.reason == "TOO_MANY_CALLS_PER_MINUTE"
    assert refused.value.retry_after_seconds == pytest.approx(10.0)
    clock.seconds += refused.value.retry_after_seconds
    with ledger.one_call(caller):
        pass


def test_a_lowered_limit_counts_at_once():
    clock = Clock()
    ledger = CallerLedger(clock)
    for clock.seconds in (0.0, 1.0, 2.0):
        with ledger.one_call(Caller("alice", CallerLimits(calls_per_minute=3))):
            pass
    lowered = Caller("alice", CallerLimits(calls_per_minute=1))
    with pytest.raises(OverLimit) as refused, ledger.one_call(lowered):
        pass
    assert refused.value.retry_after_seconds == pytest.approx(60.0)


@given(
    st.integers(1, 4), st.lists(st.floats(0, 40, allow_nan=False).map(lambda one: round(one, 3)), max_size=60)
)
def test_no_minute_has_more_than_allowed(allowed: int, pauses: list[float]) -> None:
    clock = Clock()
    ledger, caller = CallerLedger(clock), Caller("alice", CallerLimits(calls_per_minute=allowed))
    begun: list[float] = []
    for pause in pauses:
        clock.seconds += pause
        with suppress(OverLimit), ledger.one_call(caller):
            begun.append(clock.seconds)
    for first, last in zip(begun, begun[allowed:], strict=False):
        assert last - first >= 60


def test_nothing_is_kept_of_callers_without_limits():
    ledger = CallerLedger()
    for index in range(100):
        with ledger.one_call(Caller(f"ipv4:127.0.0.1:{index}")):
            pass
    assert not ledger._n_open
    assert not ledger._begun

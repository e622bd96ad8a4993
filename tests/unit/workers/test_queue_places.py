"""When there is no place left: whoever holds the most gives one up."""

from __future__ import annotations

import pytest
from tdb_server.domain.caller import Caller
from tdb_server.domain.priority import Priority
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.fair_queue import FairQueue

from tests.unit.workers.conftest import make_ticket

INTERACTIVE, SWEEP = Priority.INTERACTIVE, Priority.SWEEP
NEW = Caller("new")


def queue(*waiting: Caller | tuple[Caller, Priority]) -> FairQueue:
    filled = FairQueue(BatchRule(1000, 10**6, max_wait_seconds=0, max_seconds=1.0))
    for one in waiting:
        caller, priority = one if isinstance(one, tuple) else (one, INTERACTIVE)
        filled.put(make_ticket(caller, priority=priority))
    return filled


def test_who_holds_the_most_gives_up_the_newest():
    filled = queue(*[Caller("many")] * 3, Caller("few"))
    newest = make_ticket("many")
    filled.put(newest)
    assert filled.displaced_by(NEW, INTERACTIVE) is newest
    assert filled.displaced_by(Caller("few"), SWEEP) is newest
    assert filled.displaced_by(Caller("many"), INTERACTIVE) is None


def test_nobody_gives_up_a_place_to_one_who_would_hold_as_many():
    filled = queue(*[Caller("a")] * 2, *[Caller("b")] * 2)
    assert filled.displaced_by(Caller("a"), INTERACTIVE) is None
    assert filled.displaced_by(Caller("c"), INTERACTIVE) is not None
    assert queue().displaced_by(NEW, INTERACTIVE) is None


def test_places_count_by_weight():
    filled = queue(*[Caller("heavy", weight=4.0)] * 4, *[Caller("light")] * 2)
    displaced = filled.displaced_by(Caller("new", weight=1.0), INTERACTIVE)
    assert displaced is not None
    assert displaced.terms.caller.name == "light"


def test_within_a_caller_the_fullest_connection_gives_one_up():
    filled = queue(*[Caller("one", connection="a")] * 3, Caller("one", connection="b"))
    for among_own in (False, True):
        displaced = filled.displaced_by(Caller("one", connection="c"), INTERACTIVE, among_own=among_own)
        assert displaced is not None
        assert displaced.terms.caller.connection == "a"
    assert filled.displaced_by(Caller("one", connection="a"), INTERACTIVE) is None


def test_only_own_calls_where_the_limit_is_the_callers_own():
    filled = queue(*[Caller("other")] * 5, Caller("one", connection="a"))
    assert filled.displaced_by(Caller("one", connection="b"), INTERACTIVE, among_own=True) is None


def test_sweeps_go_first():
    filled = queue((Caller("many"), SWEEP), *[Caller("many")] * 3)
    for newcomer in (NEW, Caller("many")):
        displaced = filled.displaced_by(newcomer, INTERACTIVE)
        assert displaced is not None
        assert displaced.terms.priority is SWEEP
    assert filled.displaced_by(Caller("many"), SWEEP) is None


@pytest.mark.parametrize("is_back", [False, True])
def test_calls_that_run_again_keep_their_place(is_back):
    filled = queue()
    for _ in range(3):
        (filled.put_back if is_back else filled.put)(make_ticket("many"))
    assert (filled.displaced_by(NEW, INTERACTIVE) is None) == is_back

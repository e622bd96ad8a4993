from __future__ import annotations

import pytest
from tdb_server.domain.budget import Budget
from tdb_server.errors import OverLimit


def budget() -> Budget:
    return Budget(900, "things", "FULL")


def test_a_caller_holds_as_much_as_it_leaves_free():
    shared = budget()
    shared.take("a", 450)
    assert not shared.try_take("a", 1)
    assert shared.try_take("b", 225)
    assert not shared.try_take("b", 1)
    assert shared.try_take("c", 100), "whoever comes finds something"
    assert shared.n_bytes == 775


def test_what_is_given_back_can_be_taken():
    shared = budget()
    shared.take("a", 450)
    with pytest.raises(OverLimit) as refused:
        shared.take("a", 100)
    assert (refused.value.reason, refused.value.retry_after_seconds) == ("FULL", 1.0)
    shared.give_back("a", 450)
    shared.take("a", 100)
    assert shared.n_bytes == 100


def test_what_never_fits_need_not_be_tried_again():
    with pytest.raises(OverLimit, match="451 more bytes of things") as refused:
        budget().take("a", 451)
    assert refused.value.retry_after_seconds is None

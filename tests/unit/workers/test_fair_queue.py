from __future__ import annotations

import pytest
from tdb_server.domain.cost import Cost
from tdb_server.workers.batching import BatchRule
from tdb_server.workers.fair_queue import FairQueue

from tests.unit.workers.conftest import make_pace, make_ticket

ANY = 1000
PACE = make_pace()


def queue(max_tokens: int = 1000, max_bytes: int = 10**6) -> FairQueue:
    return FairQueue(BatchRule(max_tokens, max_bytes, max_wait_seconds=0, max_seconds=1.0))


def test_callers_take_turns():
    waiting = queue(max_tokens=8)
    busy = [make_ticket("busy") for _ in range(5)]
    for ticket in busy:
        waiting.put(ticket)
    other = make_ticket("other")
    waiting.put(other)
    assert waiting.take_batch(ANY, PACE) == [busy[0], other]
    assert waiting.take_batch(ANY, PACE) == busy[1:3]
    assert len(waiting) == 2


def test_turns_go_on_from_batch_to_batch():
    waiting = queue(max_tokens=4)
    for name in "aabbcc":
        waiting.put(make_ticket(name))
    order = [waiting.take_batch(ANY, PACE)[0].terms.caller.name for _ in range(6)]
    assert order == list("abcabc")


def test_a_batch_is_bounded_by_tokens_with_padding():
    waiting = queue(max_tokens=24)
    for n_tokens in (8, 5, 5, 5):
        waiting.put(make_ticket(n_tokens=n_tokens))
    assert [ticket.longest_prompt for ticket in waiting.take_batch(ANY, PACE)] == [8, 5, 5]


def test_short_and_long_prompts_do_not_share_a_batch():
    waiting = queue()
    for n_tokens in (100, 3, 90):
        waiting.put(make_ticket(str(n_tokens), n_tokens=n_tokens))
    assert [ticket.longest_prompt for ticket in waiting.take_batch(ANY, PACE)] == [100, 3, 90]
    for n_tokens in (100, 3, 3, 3):
        waiting.put(make_ticket(str(n_tokens), n_tokens=n_tokens))
    assert [ticket.longest_prompt for ticket in waiting.take_batch(ANY, PACE)] == [100, 3]


def test_a_batch_is_bounded_by_bytes():
    waiting = queue(max_bytes=250)
    for _ in range(4):
        waiting.put(make_ticket())
    assert len(waiting.take_batch(ANY, PACE)) == 2


def test_bytes_of_padding_count():
    rule = BatchRule(max_tokens=1000, max_activation_bytes=1000, max_wait_seconds=0, max_seconds=1.0)
    short, long = make_ticket(n_tokens=10), make_ticket(n_tokens=30)
    short.cost = long.cost = Cost(110, 0, 0)
    assert not rule.fits([long], short, PACE)  # 110 + 9 * 110
    short.cost = Cost(90, 0, 0)
    assert rule.fits([long], short, PACE)


def test_what_needs_no_backward_pass_shares_no_batch_with_what_does():
    rule = BatchRule(max_tokens=1000, max_activation_bytes=1000, max_wait_seconds=0, max_seconds=1.0)
    one, other = (make_ticket(cost=Cost(9, 0, 0, needs_gradient=False)) for _ in range(2))
    assert rule.fits([one], other, PACE)
    assert not rule.fits([one], make_ticket(cost=Cost(9, 0, 0)), PACE)


def test_what_fits_nowhere_runs_alone():
    waiting = queue(max_tokens=10)
    large = make_ticket(n_tokens=50)
    waiting.put(large)
    waiting.put(make_ticket())
    assert waiting.take_batch(ANY, PACE) == [large]
    assert len(waiting.take_batch(ANY, PACE)) == 1


def test_calls_that_run_again_come_first_and_in_batches_as_small_as_theirs():
    waiting = queue()
    for _ in range(4):
        waiting.put(make_ticket())
    again = [make_ticket(max_batch_calls=2), make_ticket(max_batch_calls=2), make_ticket(max_batch_calls=1)]
    for ticket in again:
        waiting.put_back(ticket)
    assert waiting.take_batch(ANY, PACE) == again[:2]
    assert waiting.take_batch(ANY, PACE) == again[2:]
    assert len(waiting.take_batch(ANY, PACE)) == 4


@pytest.mark.parametrize("is_back", [False, True])
def test_removal(is_back):
    waiting = queue()
    ticket = make_ticket()
    (waiting.put_back if is_back else waiting.put)(ticket)
    waiting.remove(ticket)
    waiting.remove(ticket)
    assert len(waiting) == 0
    assert waiting.take_batch(ANY, PACE) == []


def test_no_more_calls_than_the_share():
    waiting = queue()
    for _ in range(5):
        waiting.put(make_ticket())
    assert [len(waiting.take_batch(2, PACE)) for _ in range(3)] == [2, 2, 1]

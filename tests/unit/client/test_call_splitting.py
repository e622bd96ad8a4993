"""Many sub-requests become calls: of one length, within limits, those of one prompt never parted."""

from __future__ import annotations

from typing import Any

import pytest
from tdb_client import (
    Client,
    DebugSubRequest,
    Event,
    Finished,
    InvalidRequestError,
    InvalidValueError,
    ResourceExhaustedError,
    Started,
    Values,
)
from tdb_client.attention import numbers_by_call

from tests.unit.client.fake_service import REFUSED, TOO_LONG, FakeService

Fake = tuple[str, FakeService]


def asked(service: FakeService) -> list[list[str]]:
    """The prompts of each call that was made."""
    return [
        [one.prompt for one in call.sub_requests]
        for call in service.requests
        if hasattr(call, "sub_requests")
    ]


def plain(prompt: str, **words: Any) -> DebugSubRequest:
    return DebugSubRequest.of(prompt, " Mary", " John", **words)


@pytest.fixture
def client(fake: Fake) -> Any:
    fake[1].n_tokens = {"b": 5, "B": 5, "c": 3}
    with Client(fake[0]) as one:
        yield one


def test_prompts_of_several_lengths_are_several_calls(client: Client, fake: Fake) -> None:
    requests = [
        plain("b"),
        plain("a"),
        plain("B", ablate="L1 head 2 @ 0"),
        plain("c"),
        plain("A"),
        plain("B"),
    ]
    results = client.debug_many(requests, request_id="mine")
    assert asked(fake[1]) == [["b", "B", "B"], ["a", "A"], ["c"]]
    assert [one.request for one in results] == requests
    assert [one.loss for one in results] == [3.0, 3.0, 2.5, 3.0, 3.0, 3.0]
    ids = [one.call.request_id for one in results]
    assert ids == ["mine", "mine-2", "mine", "mine-3", "mine-2", "mine"]
    assert numbers_by_call(results) == [[0, 2, 5], [1, 4], [3]]


def test_one_prompt_needs_to_ask_for_nothing_else(client: Client, fake: Fake) -> None:
    client.debug_many([plain("a")])
    assert len(fake[1].requests) == 1
    client.debug_many([plain("a"), plain("a", ablate="L1 head 2 @ 0")])
    assert len(fake[1].requests) == 2


def test_those_of_one_prompt_stay_together(client: Client, fake: Fake) -> None:
    fake[1].max_sub_requests = 3
    pairs = [plain(one, **words) for one in "xyza" for words in ({}, {"ablate": "L1 head 2 @ 0"})]
    results = client.debug_many(pairs)
    assert asked(fake[1]) == [["x", "x"], ["y", "y"], ["z", "z"], ["a", "a"]]
    assert [one.loss for one in results] == [3.0, 2.5] * 4
    with pytest.raises(
        InvalidValueError, match=r"sub_requests: 4 are of one prompt, and .* takes 3: only those"
    ):
        client.debug_many([plain("x")] * 4)
    assert len(asked(fake[1])) == 4


def test_calls_are_as_full_as_may_be(client: Client, fake: Fake) -> None:
    fake[1].max_sub_requests = 3
    client.debug_many([plain(one) for one in "qrstuvw"])
    assert asked(fake[1]) == [["q", "r", "s"], ["t", "u", "v"], ["w"]]


def test_requests_are_no_longer_than_the_server_takes(client: Client, fake: Fake) -> None:
    fake[1].max_request_bytes = 4000
    client.debug_many([plain(one * 900) for one in "qrstu"])
    assert [len(one) for one in asked(fake[1])] == [3, 2]


def test_what_costs_too_much_is_halved(client: Client, fake: Fake) -> None:
    fake[1].n_affordable = 2
    events: list[Event] = []
    results = client.debug_many([plain(one) for one in "qrstu"], request_id="mine", on_event=events.append)
    assert [len(one) for one in asked(fake[1])] == [5, 2, 3, 1, 2]
    assert [one.request.prompt for one in results] == list("qrstu")
    assert [one.sub_request_index for one in events if isinstance(one, Values)] == [0, 1, 2, 3, 4]
    assert [type(one) for one in events].count(Started) == [type(one) for one in events].count(Finished) == 3
    assert [one.call.request_id for one in results] == ["mine-2"] * 2 + ["mine-4"] + ["mine-5"] * 2
    with pytest.raises(ResourceExhaustedError, match="cost_too_high"):
        client.debug_many([plain("q")] * 3)  # cannot be parted


def test_errors_have_the_numbers_of_the_caller(client: Client) -> None:
    requests = [plain("b"), plain("a"), plain("B"), plain(REFUSED)]
    with pytest.raises(InvalidRequestError) as refused:
        client.debug_many(requests)
    assert [one.path for one in refused.value.field_violations] == [
        "sub_requests[3].prompt",
        "sub_requests[3].target_tokens",
    ]
    with pytest.raises(InvalidRequestError, match=r"^sub_requests\[2\]\.prompt: is too long$"):
        client.debug_many([plain("b"), plain("a"), plain(TOO_LONG)])


def test_attention_is_added_call_by_call(client: Client, fake: Fake) -> None:
    results = client.debug_many([plain("b"), plain("a"), plain("B")], request_id="mine")
    fake[1].requests.clear()
    whole = client.with_attention(results)
    prompts = [[one.inference_spec.prompt for one in call.sub_requests] for call in fake[1].requests]
    assert prompts == [["b", "B"], ["a"]]
    assert [list(one.attention) for one in whole] == [["L1 head 2"]] * 3
    assert [one.request for one in whole] == [one.request for one in results]


def test_a_server_that_says_no_limits_is_asked_all_at_once(client: Client, fake: Fake) -> None:
    fake[1].is_silent = True
    assert len(client.debug_many([plain("q"), plain("r")])) == 2
    assert asked(fake[1]) == [["q", "r"]]

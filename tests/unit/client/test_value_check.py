"""Values that no message can carry, by every method that takes some."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tdb_client import (
    Client,
    DebugSubRequest,
    DerivedScalarsSpec,
    InferenceSubRequest,
    InvalidValueError,
    MultipleTopKSpec,
    NodeError,
    head,
)

HALF = "a\ud800"
LARGE = 2**31


P = "sub_requests[0]"


def named(name: str) -> InferenceSubRequest:
    return InferenceSubRequest("p", results={name: MultipleTopKSpec({})})


def spec(**fields: object) -> InferenceSubRequest:
    return InferenceSubRequest("p", results={"mine": DerivedScalarsSpec("mlp_post_act", **fields)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda c: c.debug(HALF, "x"), f"{P}.prompt"),
        (lambda c: c.debug("p", ["x", HALF]), f"{P}.target[1]"),
        (lambda c: c.debug("p", "x", HALF), f"{P}.distractor[0]"),
        (lambda c: c.debug("p", "x", k=LARGE), f"{P}.k"),
        (
            lambda c: c.debug("p", "x", ablate=head(LARGE, 0, token=0)),
            f"{P}.ablate[0].node.layer",
        ),
        (
            lambda c: c.debug("p", "x", trace=head(0, 0, token=-LARGE)),
            f"{P}.trace.node.token",
        ),
        (lambda c: c.debug("p", "x", request_id=HALF), "request_id"),
        (lambda c: c.debug("p", "x", timeout=float("nan")), "timeout"),
        (
            lambda c: c.debug_many([DebugSubRequest("p"), DebugSubRequest(HALF)]),
            "sub_requests[1].prompt",
        ),
        (lambda c: c.infer([spec(layer=LARGE)]), f"{P}.results['mine'].layer"),
        (
            lambda c: c.infer([named(HALF)]),
            f"{P}.results",
        ),
        (lambda c: list(c.stream_debug([DebugSubRequest(HALF)])), f"{P}.prompt"),
        (lambda c: list(c.stream_infer([InferenceSubRequest(HALF)])), f"{P}.prompt"),
        (lambda c: c.estimate([DebugSubRequest(HALF)]), f"{P}.prompt"),
        (lambda c: c.tokenize(HALF), "text"),
        (lambda c: c.detokenize([1, LARGE]), "token_ids[1]"),
        (lambda c: c.health(HALF), "service"),
        (lambda c: Client(HALF), "server"),
        (lambda c: Client(token="é"), "token"),
        (lambda c: Client(token="two\nlines"), "token"),
        (lambda c: Client(token=""), "token"),
    ],
)
def test_they_are_refused_by_name(call: Callable[[Client], object], path: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidValueError) as refused:
        call(client)
    assert refused.value.path == path
    assert str(refused.value).isascii()


def test_a_number_of_thousands_of_digits_is_no_node() -> None:
    with pytest.raises(NodeError, match="is not a node"):
        DebugSubRequest.of("p", "x", ablate=f"L{'9' * 5000} head 1 @ 1")

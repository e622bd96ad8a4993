"""Targets and distractors as text and by vocabulary index: in Python, for the command, and as shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tdb_client import (
    DebugResult,
    DebugSubRequest,
    InferenceSubRequest,
    InvalidValueError,
    Loss,
    LossTokens,
)
from tdb_client.cli import main
from tdb_client.encoding import debug_request, infer_request
from tdb_client.report.data import report_data
from tdb_client.report.page import page

from tests.unit.client.fake_service import FakeService, debug_results

Fake = tuple[str, FakeService]
Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (" Mary", (" Mary",)),
        (198, (198,)),
        (0, (0,)),
        ([" Mary", 198, " John"], (" Mary", 198, " John")),
        (np.int64(7), (7,)),
        (np.array([7, 8]), (7, 8)),
        ((), ()),
    ],
)
def test_what_a_target_may_be(given: Any, tokens: tuple[str | int, ...]) -> None:
    request = DebugSubRequest.of("p", given, distractor=given)
    assert (request.target, request.distractor) == (tokens, tokens)
    assert [type(one) for one in request.target] == [type(one) for one in tokens]


@pytest.mark.parametrize("given", [b" to", [b" to"], 7.0, None, [True], {"target": 7}.values])
def test_what_is_no_token(given: Any) -> None:
    with pytest.raises(InvalidValueError, match=r"target\[0\]: .* is neither the text of a token nor"):
        DebugSubRequest.of("p", given)


def test_a_text_alone_is_one_token_and_not_its_letters() -> None:
    words: Any = " Mary"
    assert Loss("logit_diff", words, words) == Loss("logit_diff", (words,), (words,))
    assert DebugSubRequest("p", words, words) == DebugSubRequest("p", (words,), (words,))


def test_on_the_wire() -> None:
    mixed, other = (198, " Mary", 7), (" John", 8)
    debug = debug_request([DebugSubRequest("p", mixed, other)]).sub_requests[0]
    asked = InferenceSubRequest("p", loss=Loss("logit_diff", mixed, other))
    loss = infer_request([asked]).sub_requests[0].inference_spec.loss_fn_config
    for message in (debug, loss):
        assert (message.target_tokens, message.target_token_ids) == ([" Mary"], [198, 7])
        assert (message.distractor_tokens, message.distractor_token_ids) == ([" John"], [8])


@pytest.fixture
def result() -> DebugResult:
    (found,) = debug_results(DebugSubRequest.of("p", [7, " other"], 8))
    return found


def test_answers_say_what_the_tokens_are(result: DebugResult) -> None:
    assert result.loss_tokens == LossTokens((0, 7), (" other", " Mary"), (8,), (" John",))
    assert result.objective == "logit ' Mary' (token 7), ' other' - ' John' (token 8)"
    roles = [result.role(token_id, "any") for token_id in (7, 8, 9)]
    assert roles == ["target", "distractor", None]


def test_older_servers_do_not_say_it(result: DebugResult) -> None:
    old = replace(result, loss_tokens=None)
    assert old.objective == "logit token 7, ' other' - token 8"
    roles = [old.role(*one) for one in ((7, "a"), (3, " other"), (8, "b"), (9, " Mary"))]
    assert roles == ["target", "target", "distractor", None]


def test_the_page(result: DebugResult) -> None:
    data: Any = report_data([result])
    roles = {one["token"]: one["role"] for one in data["logits"]}
    assert (roles["' Mary'"], roles["' John'"]) == ("target", "distractor")
    assert "--target ' other' --target-id 7 --distractor-id 8" in data["request"]["command"]
    assert "[7, ' other']" in data["request"]["program"]
    title = "Why &#x27; Mary&#x27; (token 7) or &#x27; other&#x27; rather than &#x27; John&#x27; (token 8)?"
    assert title in page([result])


def test_the_command(fake: Fake, capsys: Output) -> None:
    asked = ["--target-id", "7", "--distractor-id", "8", "--distractor-id", "9", "--server", fake[0]]
    assert main(["debug", "--prompt", "p", *asked]) == 0
    message = fake[1].requests[-1].sub_requests[0]
    assert (message.target_tokens, message.target_token_ids) == ([], [7])
    assert message.distractor_token_ids == [8, 9]
    assert (
        "logit ' Mary' (token 7) - ' John' (token 8), ' [bold]the' (token 9) = 3.000"
        in capsys.readouterr().out
    )
    assert main(["debug", "--prompt", "p", *asked, "--target", " Mary", "--json"]) == 0
    request = json.loads(capsys.readouterr().out)["sub_requests"][0]["request"]
    assert (request["target"], request["distractor"]) == ([" Mary", 7], [8, 9])


@pytest.mark.parametrize("token_id", ["-1", "2147483648", "x", "1.5"])
def test_the_command_refuses_what_is_no_index(capsys: Output, token_id: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["debug", "--prompt", "p", f"--target-id={token_id}"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "argument --target-id: " in err
    assert "_token_id" not in err


def test_a_value_traced_towards_the_loss_may_have_its_target_by_index(fake: Fake) -> None:
    trace = ["trace", "L1 head 2 @ 1 -> 0 through V", "--prompt", "p", "--server", fake[0]]
    assert main([*trace, "--target-id", "7"]) == 0
    assert fake[1].requests[-1].sub_requests[0].target_token_ids == [7]

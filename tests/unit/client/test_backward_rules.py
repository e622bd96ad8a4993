"""Backward rules are asked for in Python and on the command line, and answers say which it was."""

from __future__ import annotations

import json

import pytest
from tdb_client import AsyncClient, Client, DebugSubRequest, InferenceSubRequest, Loss
from tdb_client.cli import main
from tdb_client.encoding import debug_request, infer_request
from tdb_client.errors import ResponseError, UnknownNameError
from tdb_client.events import Started
from tdb_client.report.request_text import command, program
from transformer_debugger.v1.backward_rule_pb2 import BackwardRule

from tests.unit.client import fake_service
from tests.unit.client.fake_service import FakeService

Fake = tuple[str, FakeService]
RULES = ("gradient", "frozen_norms", "relp", "gim")
DEBUG = ["debug", "--prompt", "When Mary gave to", "--target", " Mary"]


@pytest.mark.parametrize("rule", RULES)
def test_messages_have_it(rule) -> None:
    number = BackwardRule.Value(f"BACKWARD_RULE_{rule.upper()}")
    for passes in (False, True):
        words = {"backward_rule": rule, "attention_pattern_gradients": passes}
        debug = debug_request([DebugSubRequest.of("p", " Mary", **words)]).sub_requests[0]
        loss = Loss("logit_diff", (" Mary",))
        infer = infer_request([InferenceSubRequest.of("p", loss, **words)]).sub_requests[0].inference_spec
        for message in (debug, infer):
            assert (message.backward_rule, message.attention_pattern_gradients) == (number, passes)


def test_a_misspelled_rule_is_told() -> None:
    with pytest.raises(UnknownNameError, match="gradient, frozen_norms, relp, gim"):
        debug_request([DebugSubRequest("p", backward_rule="lrp")])  # type: ignore[arg-type]


async def test_answers_say_it(fake: Fake) -> None:
    with Client(fake[0]) as client:
        assert [client.debug("p", " Mary", backward_rule=one).backward_rule for one in RULES] == list(RULES)
        sub_requests = [DebugSubRequest.of("p", " Mary", backward_rule=one) for one in RULES]
        started = next(event for event in client.stream_debug(sub_requests) if isinstance(event, Started))
        assert started.backward_rules == RULES
    async with AsyncClient(fake[0]) as other:
        result = await other.debug("p", " Mary", backward_rule="relp", attention_pattern_gradients=True)
    assert result.backward_rule == "relp"
    assert fake[1].requests[-1].sub_requests[0].attention_pattern_gradients


def test_a_server_that_knows_no_rules_is_not_believed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    really = fake_service.debug_stream

    def older(request, **words):
        for one in request.sub_requests:
            one.ClearField("backward_rule")
        return really(request, **words)

    monkeypatch.setattr(fake_service, "debug_stream", older)
    with Client(fake[0]) as client:
        assert client.debug("p", " Mary").backward_rule == "gradient"
        with pytest.raises(ResponseError, match="rule gim, and the server takes gradient"):
            client.debug("p", " Mary", backward_rule="gim")


def test_the_command_line_asks_for_it_and_shows_it(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DEBUG, "--rule", "relp", "--attention-pattern-gradients", "--server", fake[0]]
    assert main(words) == 0
    asked = fake[1].requests[-1].sub_requests[0]
    assert (asked.backward_rule, asked.attention_pattern_gradients) == (3, True)
    assert "; backward rule relp, " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)["sub_requests"]
    assert printed["result"]["backward_rule"] == printed["request"]["backward_rule"] == "relp"
    assert printed["request"]["attention_pattern_gradients"]


def test_a_page_has_it_to_copy() -> None:
    plain, relp = (DebugSubRequest.of("p", " Mary", backward_rule=one) for one in ("gradient", "relp"))
    assert "rule" not in command(plain) + program([plain])
    assert command(relp).endswith(" --rule relp")
    assert "backward_rule='relp'" in program([relp])

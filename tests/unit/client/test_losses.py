"""Other objectives than differences of logits: on the wire, in words, and as text to copy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tdb_client import DebugSubRequest, Loss, ResidualDirection
from tdb_client.cli.arguments import parse
from tdb_client.cli.commands import _sub_request
from tdb_client.encoding import debug_request
from tdb_client.report import request_text
from tdb_client.token_text import loss_words
from transformer_debugger.v1 import activation_pb2, loss_pb2

from tests.unit.client.fake_service import debug_results


def on_wire(loss: Loss) -> loss_pb2.LossFnConfig:
    (found,) = debug_request([DebugSubRequest.of("a prompt", loss=loss)]).sub_requests
    assert not found.target_tokens
    return found.loss_fn_config


def test_on_the_wire() -> None:
    weighted = on_wire(Loss("log_prob", (" Mary", 7), token=-1, target_weights=(0.5, 2)))
    assert weighted.name == loss_pb2.LOSS_FN_NAME_LOG_PROB
    assert (list(weighted.target_tokens), list(weighted.target_token_ids)) == ([" Mary"], [7])
    assert (weighted.token_index, list(weighted.target_weights)) == (-1, [0.5, 2.0])
    assert not weighted.HasField("direction")
    along = on_wire(Loss("direction", direction=ResidualDirection("resid_post_mlp", 3, np.ones(4)))).direction
    assert along.place == activation_pb2.ACTIVATION_LOCATION_TYPE_RESID_POST_MLP
    assert (along.layer_index, list(along.vector)) == (3, [1.0] * 4)
    assert not on_wire(Loss("probs", " Mary")).HasField("token_index")


def test_a_plain_request_says_no_loss() -> None:
    request = DebugSubRequest.of("a prompt", " Mary", " John")
    assert not debug_request([request]).sub_requests[0].HasField("loss_fn_config")
    assert request.objective == Loss("logit_diff", " Mary", " John")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("logit_diff", "logit a - b"),
        ("logit_minus_mean", "logit a - mean of all"),
        ("probs", "probability a"),
        ("log_prob", "log-probability a"),
        ("kl_from_baseline", "KL from the baseline"),
        ("zero", "zero"),
    ],
)
def test_words(name: str, words: str) -> None:
    assert loss_words(name, ["a"], ["b"]) == words


def test_the_answer_says_what_is_explained() -> None:
    loss = Loss("log_prob", " Mary", token=2, target_weights=(2,))
    (result,) = debug_results(DebugSubRequest.of("p", loss=loss))
    assert result.objective == "weighted log-probability ' Mary' @ 2"
    assert result.objective_unit == "nats"
    assert result.objective in result.to_html().replace("&#x27;", "'")
    along = ResidualDirection("resid_post_mlp", 3, (1.0,))
    (result,) = debug_results(DebugSubRequest.of("p", loss=Loss("direction", direction=along)))
    assert result.objective == "L3 resid_post_mlp along a direction"


def test_a_divergence_has_no_targets() -> None:
    words = ["debug", "--prompt", "p", "--loss", "kl_from_baseline", "--baseline", "q"]
    request = _sub_request(parse(words))
    request = replace(request, baseline=("q",))
    assert request.objective == Loss("kl_from_baseline")
    assert request_text.command(request) == "tdb debug --prompt p --loss kl_from_baseline --baseline q"
    (message,) = debug_request([request]).sub_requests
    assert message.loss_fn_config == loss_pb2.LossFnConfig(name=loss_pb2.LOSS_FN_NAME_KL_FROM_BASELINE)
    assert list(message.baseline_prompts) == ["q"]
    (result,) = debug_results(request)
    assert (result.objective, result.objective_unit) == ("KL from the baseline", "nats")


def test_the_command_line() -> None:
    words = ["debug", "--prompt", "p", "--target", " Mary", "--loss", "log_prob", "--at", "3"]
    request = _sub_request(parse(words))
    assert request.loss == Loss("log_prob", " Mary", token=3)
    assert request_text.command(request) == "tdb debug --prompt p --target ' Mary' --loss log_prob --at 3"
    assert "from tdb_client import Client, Loss\n" in request_text.program([request])
    assert _sub_request(parse(words[:5])).loss is None
    along = Loss("direction", direction=ResidualDirection("resid_post_emb", None, (1.0,)))
    program = request_text.program([DebugSubRequest.of("p", loss=along)])
    names: dict[str, object] = {}
    exec(program.splitlines()[0], names)
    assert eval(program.split("loss=", 1)[1].rsplit(",\n", 1)[0], names) == along
    assert request_text.command(DebugSubRequest.of("p", loss=along)).startswith("#")

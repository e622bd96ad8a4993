"""Backward rules from client to engine: the same run, other gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tdb_client import Client, DebugSubRequest, InferenceSubRequest, InvalidRequestError, Loss

from tests.running_server import RunningServer

PROMPT = "When Mary and John went to the store"
RULES = ("gradient", "frozen_norms", "relp", "gim")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as found:
        yield found


def test_one_call_has_them_all_over_the_same_run(client: Client) -> None:
    words = [{"backward_rule": rule} for rule in RULES]
    words.append({"backward_rule": "relp", "attention_pattern_gradients": True})
    results = client.debug_many([DebugSubRequest.of(PROMPT, " the", " of", **one) for one in words])
    assert [one.backward_rule for one in results] == [*RULES, "relp"]
    for one in results[1:]:
        assert one.loss == results[0].loss
        assert np.array_equal(one.nodes.activation, results[0].nodes.activation)
    totals = [one.sums["act_times_grad"]["token_attribution"].sum() for one in results]
    assert len({round(float(one), 4) for one in totals}) == len(results)


def test_refusals_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.debug(PROMPT, " the", backward_rule="gim", attention_pattern_gradients=True)
    (violation,) = caught.value.field_violations
    assert violation.path == "sub_requests[0].attention_pattern_gradients"
    with pytest.raises(InvalidRequestError) as caught:
        client.infer([InferenceSubRequest(PROMPT, backward_rule="relp")])
    (violation,) = caught.value.field_violations
    assert violation.path == "sub_requests[0].inference_spec.backward_rule"
    (answer,) = client.infer(
        [InferenceSubRequest(PROMPT, Loss("logit_diff", (" the",)), backward_rule="relp")]
    )
    assert answer.backward_rule == "relp"

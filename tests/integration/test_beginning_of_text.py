"""A Llama model whose tokenizer begins every text with a token of its own, on every surface.

transformers is the judge: its usual call puts that token in front, and `add_special_tokens=False` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch
from tdb_client import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InferenceSubRequest,
    InvalidRequestError,
    Loss,
    TokenCountWarning,
)
from transformer_debugger.v1.model_service_pb2 import DetokenizeRequest, GetModelInfoRequest, TokenizeRequest

from tests.random_models import auto, begin_texts, reference_model, write_random_model
from tests.running_server import RunningServer, start, stop

PROMPT = "When Mary and John went to the store, John gave a drink to"
BOS, BOS_TEXT = 999, "<|endoftext|>"
TO, AND = " to", " and"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin_texts(write_random_model(tmp_path_factory.mktemp("model") / "llama", "llama"))


@pytest.fixture(scope="module")
def adding(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = start(tmp_path_factory.mktemp("server"), "--http-port", "0", model=folder)
    yield server
    stop(server)


@pytest.fixture
def client(adding: RunningServer) -> Iterator[Client]:
    with Client(f"127.0.0.1:{adding.port}") as one:
        yield one


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Callable[[str, bool], Any]:
    """The last token's logits [V], with the model's own beginning of text or without."""
    tokenizer, model = auto.PreTrainedTokenizerFast.from_pretrained(folder), reference_model(folder)

    @cache
    def logits(prompt: str, begins: bool) -> Any:
        ids = tokenizer(prompt, add_special_tokens=begins, return_tensors="pt").input_ids
        assert (ids[0, 0] == BOS) == (begins or prompt.startswith(BOS_TEXT))
        with torch.no_grad():
            return model(ids).logits[0, -1]

    return logits


@pytest.fixture(scope="module")
def ids(folder: Path) -> dict[str, int]:
    tokenizer = auto.PreTrainedTokenizerFast.from_pretrained(folder)
    return {text: tokenizer(text, add_special_tokens=False).input_ids[0] for text in (TO, AND, "\n")}


def difference(logits: Any, ids: dict[str, int]) -> float:
    return float(logits[ids[TO]] - logits[ids[AND]])


@pytest.mark.parametrize(("add_bos", "begins"), [(None, True), (True, True), (False, False)])
def test_debug_and_infer(
    client: Client,
    oracle: Callable[[str, bool], Any],
    ids: dict[str, int],
    add_bos: bool | None,
    begins: bool,
) -> None:
    want = difference(oracle(PROMPT, begins), ids)
    result = client.debug(PROMPT, TO, AND, k=2, add_bos=add_bos)
    (general,) = client.infer(
        [InferenceSubRequest(PROMPT, Loss("logit_diff", (TO,), (AND,)), add_bos=add_bos)]
    )
    for one in (result, general):
        assert one.loss == pytest.approx(want, abs=1e-4)
        assert one.prompt.bos_added == begins
        assert (one.prompt.token_ids[0] == BOS) == begins
        assert (one.prompt.tokens[0] == BOS_TEXT) == begins
    assert result.logits.logits[0] == pytest.approx(float(oracle(PROMPT, begins).max()), abs=1e-4)


async def test_the_async_client(
    adding: RunningServer, oracle: Callable[[str, bool], Any], ids: dict[str, int]
) -> None:
    async with AsyncClient(f"127.0.0.1:{adding.port}") as client:
        for add_bos, begins in ((None, True), (False, False)):
            result = await client.debug(PROMPT, TO, AND, k=2, add_bos=add_bos)
            assert result.loss == pytest.approx(difference(oracle(PROMPT, begins), ids), abs=1e-4)


def test_written_out_it_is_not_added_again(
    client: Client, oracle: Callable[[str, bool], Any], ids: dict[str, int]
) -> None:
    want = difference(oracle(PROMPT, True), ids)
    for add_bos in (None, True, False):
        result = client.debug(BOS_TEXT + PROMPT, TO, AND, k=2, add_bos=add_bos)
        assert result.loss == pytest.approx(want, abs=1e-4)
        assert not result.prompt.bos_added


def test_answers_with_and_without_are_never_shared(client: Client) -> None:
    asked = [client.debug("a store", TO, AND, k=3, add_bos=one) for one in (True, False, None, False)]
    assert [one.cached for one in asked] == [False, False, True, True]
    assert asked[0].loss == asked[2].loss
    assert asked[1].loss == asked[3].loss
    assert asked[0].loss != asked[1].loss


def test_prompts_of_one_call_are_as_long_as_they_are_run(client: Client) -> None:
    with_it, without = InferenceSubRequest(TO), InferenceSubRequest(TO + TO, add_bos=False)
    answers = client.infer([with_it, without])
    assert [one.prompt.tokens for one in answers] == [(BOS_TEXT, TO), (TO, TO)]
    with pytest.raises(InvalidRequestError) as refused:
        client.infer([with_it, InferenceSubRequest(TO, add_bos=False)])
    assert refused.value.reason == "UNEQUAL_PROMPT_LENGTHS"


def test_nodes_count_it(client: Client) -> None:
    n_tokens = len(client.tokenize(PROMPT, add_bos=True))
    last = client.debug(PROMPT, TO, AND, k=2, ablate="L2 neuron 5 @ -1")
    counted = client.debug(PROMPT, TO, AND, k=2, ablate=f"L2 neuron 5 @ {n_tokens - 1}", add_bos=True)
    assert last.loss == counted.loss
    assert last.loss != client.debug(PROMPT, TO, AND, k=2).loss
    assert {node.token for node in last.nodes.nodes} <= set(range(n_tokens))
    with pytest.raises(InvalidRequestError) as refused:
        client.debug(PROMPT, TO, AND, ablate=f"L2 neuron 5 @ {n_tokens - 1}", add_bos=False)
    assert refused.value.reason == "TENSOR_INDEX_OUT_OF_RANGE"


def test_a_number_from_the_texts_own_tokens_is_warned_of(client: Client) -> None:
    tokens = client.tokenize(PROMPT).tokens
    token = tokens.index(" to")
    with pytest.warns(TokenCountWarning, match=f": {token} is {tokens[token - 1]!r}"):
        client.debug(PROMPT, TO, AND, k=2, ablate=f"L2 neuron 5 @ {token}")


def test_tokenize_and_detokenize_add_none_unasked(adding: RunningServer) -> None:
    plain = adding.model.Tokenize(TokenizeRequest(text=PROMPT))
    begun = adding.model.Tokenize(TokenizeRequest(text=PROMPT, add_bos=True))
    assert list(begun.token_ids) == [BOS, *plain.token_ids]
    assert list(begun.token_strings) == [BOS_TEXT, *plain.token_strings]
    assert (plain.bos_added, plain.prompt_adds_bos) == (False, True)
    assert (begun.bos_added, begun.prompt_adds_bos) == (True, True)
    written = adding.model.Tokenize(TokenizeRequest(text=BOS_TEXT + PROMPT, add_bos=True))
    assert list(written.token_ids) == list(begun.token_ids)
    assert (written.bos_added, written.prompt_adds_bos) == (False, False)
    for token_ids, add_bos, text in (
        (plain.token_ids, None, PROMPT),
        (plain.token_ids, True, BOS_TEXT + PROMPT),
        (begun.token_ids, True, BOS_TEXT + PROMPT),
        (begun.token_ids, False, BOS_TEXT + PROMPT),
    ):
        back = adding.model.Detokenize(DetokenizeRequest(token_ids=token_ids, add_bos=add_bos))
        assert back.text == text
        assert "".join(back.token_strings) == text


def test_the_model_says_it(adding: RunningServer, server: RunningServer) -> None:
    info = adding.model.GetModelInfo(GetModelInfoRequest()).model_info
    assert (info.adds_bos, info.bos_token_id, info.bos_token) == (True, BOS, BOS_TEXT)
    other = server.model.GetModelInfo(GetModelInfoRequest()).model_info
    assert not other.adds_bos


def test_json(adding: RunningServer, oracle: Callable[[str, bool], Any], ids: dict[str, int]) -> None:
    url = f"http://127.0.0.1:{adding.http_port}"
    loss = {"name": "logit_diff", "targetTokens": [TO], "distractorTokenIds": [ids[AND]]}
    for key, begins in (
        ({}, True),
        ({"addBos": None}, True),
        ({"addBos": True}, True),
        ({"addBos": False}, False),
    ):
        debug = {
            "prompt": PROMPT,
            "targetTokenIds": [ids[TO]],
            "distractorTokens": [AND],
            "topAndBottomKForNodeTable": 2,
        }
        answers = [
            httpx.post(f"{url}/batched_tdb", json={"subRequests": [debug | key]}),
            httpx.post(
                f"{url}/batched",
                json={
                    "inferenceSubRequests": [
                        {
                            "inferenceRequestSpec": {"prompt": PROMPT, "lossFnConfig": loss} | key,
                            "processingRequestSpecByName": {},
                        }
                    ]
                },
            ),
        ]
        for answer in answers:
            (sub_response,) = answer.json()["inferenceSubResponses"]
            found = sub_response["inferenceResponse"]["inferenceAndTokenData"]
            assert found["loss"] == pytest.approx(difference(oracle(PROMPT, begins), ids), abs=1e-4)
            assert (found["tokensAsInts"][0] == BOS) == begins
    refused = httpx.post(f"{url}/batched_tdb", json={"subRequests": [{"prompt": PROMPT, "addBos": 1}]})
    assert refused.status_code == 400
    assert "subRequests[0].addBos" in refused.json()["message"]


def test_targets_by_index(client: Client, oracle: Callable[[str, bool], Any], ids: dict[str, int]) -> None:
    logits = oracle(PROMPT, True)
    newline, bos = ids["\n"], BOS
    result = client.debug(PROMPT, [newline, TO], bos, k=2)
    want = float((logits[newline] + logits[ids[TO]]) / 2 - logits[bos])
    assert result.loss == pytest.approx(want, abs=1e-4)
    assert result.loss_tokens is not None
    assert result.loss_tokens.target_ids == (ids[TO], newline)
    assert result.loss_tokens.targets == (TO, "\n")
    assert result.objective == f"logit '\\n' (token {newline}), ' to' - '{BOS_TEXT}' (token {bos})"
    (probability,) = client.infer([InferenceSubRequest(PROMPT, Loss("probs", (newline, newline)))])
    assert probability.loss == pytest.approx(2 * float(logits.softmax(0)[newline]), abs=1e-4)
    with pytest.raises(InvalidRequestError) as refused:
        client.debug(PROMPT, [TO, 1000])
    (violation,) = refused.value.field_violations
    assert violation.path == "sub_requests[0].target_token_ids[0]"
    assert violation.description == "token 1000 is outside the model's 1000 tokens, 0 to 999"


def test_a_model_without_such_a_token(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", "llama", bos_token_id=None, eos_token_id=None)
    server = start(tmp_path, model=folder)
    try:
        with Client(f"127.0.0.1:{server.port}") as client:
            assert client.model_info().bos_token_id is None
            calls: list[tuple[Callable[[], object], str]] = [
                (lambda: client.debug(PROMPT, TO, add_bos=True), "sub_requests[0].add_bos"),
                (
                    lambda: client.infer([InferenceSubRequest(PROMPT, add_bos=True)]),
                    "sub_requests[0].inference_spec.add_bos",
                ),
                (lambda: client.tokenize(PROMPT, add_bos=True), "add_bos"),
                (lambda: client.detokenize([1], add_bos=True), "add_bos"),
            ]
            for call, path in calls:
                with pytest.raises(FailedPreconditionError) as refused:
                    call()
                assert refused.value.status == grpc.StatusCode.FAILED_PRECONDITION.name
                assert refused.value.reason == "NO_BOS_TOKEN"
                assert [one.path for one in refused.value.field_violations] == [path]
            assert client.debug(PROMPT, TO, k=1, add_bos=False).loss is not None
    finally:
        stop(server)

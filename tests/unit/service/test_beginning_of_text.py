"""The beginning-of-text token in front of prompts: by default, outright, never twice, and counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tdb_server.domain.cost import estimated_cost
from tdb_server.domain.limits import Limits
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.workers.result_cache import cache_key
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, InferRequest

from tests.random_models import begin_texts
from tests.unit.service.tiny_requests import (
    FIXTURE,
    N_TOKENS,
    PROMPT,
    TOKENIZER,
    debug,
    infer,
    model,
    node,
    parse,
    violations,
)

BOS, BOS_TEXT = 999, "<|endoftext|>"
IDS = tuple(TOKENIZER.encode(PROMPT))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(FIXTURE / "tokenizer.json", tmp_path)
    return tmp_path


@pytest.fixture
def adding(folder: Path) -> Tokenizer:
    """A tokenizer that begins every text."""
    return Tokenizer(begin_texts(folder))


@pytest.fixture
def silent(folder: Path) -> Tokenizer:
    """A tokenizer that has the token and does not add it."""
    (folder / "tokenizer_config.json").write_text(f'{{"bos_token": "{BOS_TEXT}"}}')
    return Tokenizer(folder)


def asked(make: object, add_bos: bool | None, prompt: str = PROMPT) -> DebugRequest | InferRequest:
    request: DebugRequest | InferRequest = make()
    (sub_request,) = request.sub_requests
    message = sub_request if isinstance(request, DebugRequest) else sub_request.inference_spec
    message.prompt = prompt
    if add_bos is not None:
        message.add_bos = add_bos
    return request


both = pytest.mark.parametrize("make", [debug, infer])


@both
@pytest.mark.parametrize(
    ("tokenizer_name", "add_bos", "begins"),
    [
        ("adding", None, True),
        ("adding", True, True),
        ("adding", False, False),
        ("silent", None, False),
        ("silent", True, True),
        ("silent", False, False),
    ],
)
def test_who_gets_one(
    request: pytest.FixtureRequest, make: object, tokenizer_name: str, add_bos: bool | None, begins: bool
) -> None:
    tokenizer = request.getfixturevalue(tokenizer_name)
    (found,) = parse(asked(make, add_bos), tokenizer=tokenizer)
    assert found.inference.token_ids == ((BOS, *IDS) if begins else IDS)
    assert found.inference.bos_added == begins


@both
@pytest.mark.parametrize("add_bos", [None, True, False])
def test_never_twice(adding: Tokenizer, make: object, add_bos: bool | None) -> None:
    (found,) = parse(asked(make, add_bos, BOS_TEXT + PROMPT), tokenizer=adding)
    assert found.inference.token_ids == (BOS, *IDS)
    assert not found.inference.bos_added


@both
def test_never_for_targets(adding: Tokenizer, make: object) -> None:
    (found,) = parse(asked(make, True), tokenizer=adding)
    assert found.inference.loss.target_tokens == tuple(TOKENIZER.encode(" the"))


@pytest.mark.parametrize(("make", "place"), [(debug, ""), (infer, "inference_spec.")])
def test_a_model_without_one(make: object, place: str) -> None:
    assert violations(asked(make, True)) == [(f"sub_requests[0].{place}add_bos", "NO_BOS_TOKEN")]
    (found,) = parse(asked(make, False))
    assert found.inference.token_ids == IDS


@both
def test_it_counts_against_the_limit(adding: Tokenizer, make: object) -> None:
    limits = Limits(max_prompt_tokens=N_TOKENS)
    parse(asked(make, False), limits=limits, tokenizer=adding)
    ((field, reason),) = violations(asked(make, None), limits=limits, tokenizer=adding)
    assert (field.rpartition(".")[2], reason) == ("prompt", "PROMPT_TOO_LONG")


@both
def test_an_empty_prompt_needs_it_said(adding: Tokenizer, make: object) -> None:
    (found,) = parse(asked(make, True, ""), tokenizer=adding)
    assert found.inference.token_ids == (BOS,)
    for add_bos in (None, False):
        ((_, reason),) = violations(asked(make, add_bos, ""), tokenizer=adding)
        assert reason == "EMPTY_PROMPT"


def test_indices_count_it(adding: Tokenizer) -> None:
    def ablated_at(token: int, add_bos: bool | None) -> DebugRequest:
        request = asked(debug, add_bos)
        assert isinstance(request, DebugRequest)
        request.sub_requests[0].node_ablations.add(node_index=node(4, 1, token, 3))
        return request

    (found,) = parse(ablated_at(N_TOKENS, None), tokenizer=adding)
    assert found.inference.ablations[0].index.tensor_indices == (N_TOKENS, 3)
    ((_, reason),) = violations(ablated_at(N_TOKENS, False), tokenizer=adding)
    assert reason == "TENSOR_INDEX_OUT_OF_RANGE"


def test_prompts_of_one_call_are_compared_with_it(adding: Tokenizer) -> None:
    request = asked(debug, True)
    assert isinstance(request, DebugRequest)
    other = asked(debug, False)
    assert isinstance(other, DebugRequest)
    request.sub_requests.extend(other.sub_requests)
    assert violations(request, tokenizer=adding) == [("sub_requests", "UNEQUAL_PROMPT_LENGTHS")]


@both
def test_cost_and_cache_tell_with_from_without(adding: Tokenizer, make: object) -> None:
    with_bos, without = (parse(asked(make, one), tokenizer=adding) for one in (True, False))
    written = parse(asked(make, False, BOS_TEXT + PROMPT), tokenizer=adding)
    assert len({cache_key("anyone", "0", one) for one in (with_bos, without, written)}) == 3
    assert cache_key("anyone", "0", with_bos) == cache_key(
        "anyone", "0", parse(asked(make, None), tokenizer=adding)
    )
    costs = [estimated_cost(model(), one).activation_bytes for one in (with_bos, without, written)]
    assert costs[0] == costs[2] > costs[1]

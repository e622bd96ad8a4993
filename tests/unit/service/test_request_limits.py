"""What is too much is refused before it costs anything, and of many mistakes only some are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from tdb_server.domain.limits import Limits
from tdb_server.errors import FieldsOverLimit, InvalidRequest, OverLimit
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.error_status import error_status
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.request_reader import MAX_VIOLATIONS
from transformer_debugger.v1 import ablation_pb2, loss_pb2, node_pb2
from transformer_debugger.v1 import processing_pb2 as processing
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugSubRequest,
    InferenceSpec,
    InferenceSubRequest,
    InferRequest,
)

from tests.running_server import TINY_MODEL
from tests.unit.service.tiny_requests import model


class CountingTokenizer(Tokenizer):
    """Counts the characters that it cuts."""

    n_characters = 0

    def encode(self, text: str) -> list[int]:
        self.n_characters += len(text)
        return super().encode(text)


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return CountingTokenizer(Path(TINY_MODEL))


def debug(prompt: str = "the cat", **fields: object) -> DebugRequest:
    one = DebugSubRequest(prompt=prompt, top_and_bottom_k=1, **fields)  # type: ignore[arg-type]
    if not one.target_tokens and not one.target_token_ids:
        one.target_tokens.append(" the")
    return DebugRequest(sub_requests=[one])


def infer(*specs: processing.NamedProcessingSpec) -> InferRequest:
    loss = loss_pb2.LossFnConfig(name=loss_pb2.LOSS_FN_NAME_LOGIT_DIFF, target_tokens=[" the"])
    run = InferenceSpec(prompt="the cat", loss_fn_config=loss)
    return InferRequest(sub_requests=[InferenceSubRequest(inference_spec=run, processing_specs=specs)])


def refused(
    request: DebugRequest | InferRequest, tokenizer: Tokenizer, limits: Limits | None = None
) -> InvalidRequest | OverLimit:
    parse = parse_debug_request if isinstance(request, DebugRequest) else parse_infer_request
    with pytest.raises((InvalidRequest, OverLimit)) as failure:
        parse(request, model(), limits or Limits(), tokenizer)  # type: ignore[arg-type]
    return failure.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", ["7" * 4_000_000, "é" * 1_500_000, " the" * 1_000_000])
def test_a_prompt_of_many_bytes_is_not_cut_into_tokens(tokenizer, text):
    failure = refused(debug(text), tokenizer)
    assert failure.reason == "PROMPT_TOO_LONG"
    assert "bytes" in failure.message
    assert tokenizer.n_characters == 0


def test_of_a_prompt_with_too_many_tokens_a_beginning_is_cut(tokenizer):
    failure = refused(debug("7" * 600_000), tokenizer, Limits(max_prompt_bytes=10**6))
    assert failure.reason == "PROMPT_TOO_LONG"
    assert "has more than" in failure.message
    assert 0 < tokenizer.n_characters < 1_000


def test_a_prompt_that_fits_is_read_however_its_tokens_are_spread(tokenizer):
    """Its beginning is many short tokens; in all it fits."""
    text = "7" * 20 + " the" * 40
    (one,) = parse_debug_request(debug(text), model(), Limits(), tokenizer)
    assert list(one.inference.token_ids) == tokenizer.encode(text)


@pytest.mark.parametrize("n_tokens", [1, 3, 20, 1000])
def test_a_beginning_is_cut_as_the_whole_where_it_is_all(tokenizer, n_tokens):
    text = "the cat sat on the mat, and 7 of 9 mats were " * 5
    assert tokenizer.encode_at_most(text, n_tokens) in (None, tokenizer.encode(text))
    assert tokenizer.encode_at_most(text, len(tokenizer.encode(text))) == tokenizer.encode(text)


@pytest.mark.parametrize("field", ["target_tokens", "target_token_ids", "distractor_tokens"])
def test_many_targets_are_refused_unread(tokenizer, field):
    entries = [1] * 2000 if field.endswith("ids") else [" the"] * 2000
    failure = refused(debug(**{field: entries}), tokenizer)
    assert isinstance(failure, FieldsOverLimit)
    assert failure.reason == "TOO_MANY_TARGET_TOKENS"
    assert [one.field for one in failure.violations] == [f"sub_requests[0].{field}"]
    assert f"sub_requests[0].{field}: 2000 are over the limit of 1024" in failure.message


def test_of_many_mistakes_the_first_are_told_and_the_others_counted(tokenizer):
    failure = refused(debug(target_tokens=["no token at all"] * 1000), tokenizer)
    assert isinstance(failure, InvalidRequest)
    assert (len(failure.violations), failure.n_more) == (MAX_VIOLATIONS, 1000 - MAX_VIOLATIONS)
    assert failure.violations[-1].field == f"sub_requests[0].target_tokens[{MAX_VIOLATIONS - 1}]"
    assert failure.message.endswith("; and 936 more")
    details = error_status(failure).SerializeToString()
    assert b"violations_left_out" in details
    assert len(details) < 8000


def test_mistakes_that_are_not_told_count_for_the_status(tokenizer):
    """More than enough is over a limit, and the last thing wrong can never be right."""
    ablation = ablation_pb2.NodeAblation(
        node_index=node_pb2.NodeIndex(node_type=node_pb2.NODE_TYPE_MLP_NEURON, tensor_indices=[0, 0])
    )
    request = debug()
    one = request.sub_requests[0]
    one.top_and_bottom_k = 100_000
    for _ in range(MAX_VIOLATIONS + 6):
        request.sub_requests.append(one)
    request.sub_requests[-1].node_ablations.append(ablation)
    limits = Limits(max_sub_requests=1000)
    failure = refused(request, tokenizer, limits)
    assert isinstance(failure, InvalidRequest)
    assert {one.reason for one in failure.violations} == {"K_TOO_LARGE"}
    del request.sub_requests[-1].node_ablations[:]
    assert isinstance(refused(request, tokenizer, limits), OverLimit)


def group(scalars: list[int]) -> processing.DerivedScalarGroup:
    return processing.DerivedScalarGroup(group_id=1, derived_scalar_types=scalars)  # type: ignore[arg-type]


def ranking(**fields: object) -> processing.NamedProcessingSpec:
    spec = {"groups": [group([1])], "top_and_bottom_k": 1} | fields
    return processing.NamedProcessingSpec(name="r", multiple_top_k=processing.MultipleTopKSpec(**spec))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (
            ranking(groups=[group([120] * 4_000_000)]),
            "multiple_top_k.groups[0].derived_scalar_types",
        ),
        (ranking(groups=[processing.DerivedScalarGroup()] * 100_000), "multiple_top_k.groups"),
        (
            ranking(dimensions_to_keep_for_sum=[77] * 1_000_000),
            "multiple_top_k.dimensions_to_keep_for_sum",
        ),
        (processing.NamedProcessingSpec(name="x" * 3_000_000), "name"),
    ],
)
def test_lists_and_names_without_end_are_one_mistake(tokenizer, spec, field):
    failure = refused(infer(spec), tokenizer)
    assert isinstance(failure, InvalidRequest)
    assert f"sub_requests[0].processing_specs[0].{field}" in [one.field for one in failure.violations]
    assert len(failure.violations) <= 2
    assert len(failure.message) < 1000


def test_a_name_that_is_depended_on_is_told_shortened(tokenizer):
    scored = processing.ScoredTokensSpec(depends_on="x" * 1_000_000, token_scoring_type=1, num_tokens=1)
    failure = refused(infer(processing.NamedProcessingSpec(name="s", scored_tokens=scored)), tokenizer)
    assert failure.reason == "UNKNOWN_DEPENDENCY"
    assert len(failure.message) < 1000


def test_indices_without_end(tokenizer):
    node = node_pb2.NodeIndex(
        node_type=node_pb2.NODE_TYPE_MLP_NEURON, layer_index=0, tensor_indices=[0] * 1_000_000
    )
    failure = refused(debug(node_ablations=[ablation_pb2.NodeAblation(node_index=node)]), tokenizer)
    assert failure.reason == "WRONG_NUMBER_OF_INDICES"

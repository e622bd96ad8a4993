"""Targets and distractors: as text, cut as where other text stands before it, and as token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.message import Message
from tdb_server.domain.requests import LossName
from tdb_server.errors import InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.error_status import MAX_MESSAGE_BYTES, error_status
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, InferRequest

from tests.unit.service.sentence_pieces import VOCABULARY, sentence_pieces
from tests.unit.service.tiny_requests import TOKENIZER, debug, infer, parse, refused, violations

THE, OF = TOKENIZER.encode(" the")[0], TOKENIZER.encode(" of")[0]


def objective(request: DebugRequest | InferRequest) -> Message:
    """Where a request's targets stand."""
    if isinstance(request, DebugRequest):
        return request.sub_requests[0]
    return request.sub_requests[0].inference_spec.loss_fn_config


def asked(
    request: DebugRequest | InferRequest, **fields: list[str] | list[int]
) -> DebugRequest | InferRequest:
    """The request with these targets and distractors alone."""
    message = objective(request)
    for name in ("target_tokens", "target_token_ids", "distractor_tokens", "distractor_token_ids"):
        message.ClearField(name)
        getattr(message, name).extend(fields.get(name, []))
    return request


def path(request: DebugRequest | InferRequest) -> str:
    is_debug = isinstance(request, DebugRequest)
    return "sub_requests[0]." + ("" if is_debug else "inference_spec.loss_fn_config.")


@pytest.fixture(params=[debug, infer])
def request_(request: pytest.FixtureRequest) -> DebugRequest | InferRequest:
    made: DebugRequest | InferRequest = request.param()
    return made


def test_ids_follow_texts(request_: DebugRequest | InferRequest) -> None:
    fields = {
        "target_tokens": [" the", " of"],
        "target_token_ids": [198, THE],
        "distractor_token_ids": [0, 999],
    }
    (found,) = parse(asked(request_, **fields))
    loss = found.inference.loss
    assert (loss.target_tokens, loss.distractor_tokens) == ((THE, OF, 198, THE), (0, 999))


def test_ids_alone_are_enough(request_: DebugRequest | InferRequest) -> None:
    (found,) = parse(asked(request_, target_token_ids=[198]))
    assert found.inference.loss.target_tokens == (198,)


def test_neither_text_nor_id(request_: DebugRequest | InferRequest) -> None:
    expected = [(path(request_) + "target_tokens", "FIELD_REQUIRED")]
    assert violations(asked(request_, distractor_token_ids=[3])) == expected


@pytest.mark.parametrize("token_id", [-1, 1000, 2**31 - 1])
def test_ids_that_do_not_exist(request_: DebugRequest | InferRequest, token_id: int) -> None:
    wrong = asked(request_, target_token_ids=[5, token_id], distractor_token_ids=[token_id])
    places = ("target_token_ids[1]", "distractor_token_ids[0]")
    assert violations(wrong) == [(path(request_) + one, "UNKNOWN_TOKEN_ID") for one in places]


def test_losses_without_distractors() -> None:
    request = asked(infer(), target_token_ids=[5], distractor_token_ids=[6])
    request.sub_requests[0].inference_spec.loss_fn_config.name = 3
    assert violations(request) == [(path(request) + "distractor_token_ids", "FIELD_NOT_ALLOWED")]
    objective(request).ClearField("distractor_token_ids")
    (found,) = parse(request)
    assert (found.inference.loss.name, found.inference.loss.target_tokens) == (LossName.PROBS, (5,))


@pytest.mark.parametrize("by_metaspace", [False, True])
@pytest.mark.parametrize(
    ("text", "piece"),
    [(" to", "▁to"), ("to", "to"), ("▁to", "▁to"), ("\n", "<0x0A>"), (" ", "▁"), ("x", "x"), ("<s>", "<s>")],
)
def test_texts_are_cut_as_where_other_text_stands_before(
    tmp_path: Path, text: str, piece: str, by_metaspace: bool
) -> None:
    tokenizer = sentence_pieces(tmp_path, by_metaspace=by_metaspace)
    (found,) = parse(asked(debug(), target_tokens=[text]), tokenizer=tokenizer)
    assert found.inference.loss.target_tokens == (VOCABULARY[piece],)


def test_prompts_are_cut_as_ever(tmp_path: Path) -> None:
    request = asked(debug(), target_tokens=[" x"])
    request.sub_requests[0].prompt = "to x"
    (found,) = parse(request, tokenizer=sentence_pieces(tmp_path))
    assert found.inference.token_ids == (VOCABULARY["▁to"], VOCABULARY["▁x"])


def said(tokenizer: Tokenizer, text: str) -> str:
    (violation,) = refused(asked(debug(), target_tokens=[text]), tokenizer=tokenizer)
    assert (violation.field, violation.reason) == ("sub_requests[0].target_tokens[0]", "NOT_ONE_TOKEN")
    return violation.description


def test_errors_say_what_the_tokens_are(tmp_path: Path) -> None:
    tokenizer = sentence_pieces(tmp_path)
    x, xx = VOCABULARY["x"], VOCABULARY["▁x"]
    assert said(tokenizer, " xx") == f"must be one token, and ' xx' is 2: ' x' ({xx}), 'x' ({x})"
    first, second = (VOCABULARY[one] for one in ("<0xC3>", "<0xA9>"))
    assert said(tokenizer, "é") == f"must be one token, and 'é' is 2: '\ufffd' ({first}), '\ufffd' ({second})"
    assert said(tokenizer, "") == "must be one token, and is none"


def test_errors_say_when_the_space_in_front_is_missing() -> None:
    assert len(TOKENIZER.encode("people")) > 1
    assert len(TOKENIZER.encode(" people")) == 1
    assert said(TOKENIZER, "people").startswith("must be one token, as ' people' is, and 'people' is ")


def test_errors_know_the_spelling_of_the_vocabulary(tmp_path: Path) -> None:
    newline = VOCABULARY["<0x0A>"]
    said_so = (
        f"must be one token (the vocabulary spells token {newline} so: ask for it by index), and '<0x0A>' is "
    )
    assert said(sentence_pieces(tmp_path), "<0x0A>").startswith(said_so)
    (the,) = TOKENIZER.encode(" the")
    assert f"spells token {the} so" in said(TOKENIZER, "Ġthe")


@pytest.mark.parametrize("text", ["word " * 1000, "\x1b[31m\x00\u202e" * 500, "🎉" * 2000, "\n" * 900])
def test_errors_about_long_and_strange_texts(text: str) -> None:
    words = said(TOKENIZER, text)
    n_tokens = len(TOKENIZER.encode(text))
    assert len(words.encode()) < MAX_MESSAGE_BYTES
    assert words.startswith("must be one token, and ")
    assert f"… is {n_tokens}: " in words
    assert words.endswith("), …")
    assert words.isprintable()


def test_many_errors_keep_what_matters_of_each() -> None:
    request = asked(debug(), target_tokens=["word " * 1000] * 50)
    with pytest.raises(InvalidRequest) as caught:
        parse(request)
    status = error_status(caught.value)
    assert status.message.startswith("sub_requests[0].target_tokens[0]: must be one token, and 'word word")
    assert len(status.SerializeToString()) < 8192

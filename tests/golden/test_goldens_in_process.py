"""The reference's answers against the engine's, through every translation but without a server between."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tdb_server.domain.call import Call
from tdb_server.domain.limits import Limits
from tdb_server.domain.model_info import ModelInfo
from tdb_server.domain.results import NamedResult, ObjectiveValues
from tdb_server.engine.engine import Engine
from tdb_server.gateway.json_requests import debug_request, infer_request, single_infer_request
from tdb_server.gateway.json_responses import batched_response, single_response
from tdb_server.gateway.json_text import json_pieces
from tdb_server.model.autoencoder_loading import fit_dictionaries, read_dictionaries
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.model.weights import load_decoder
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.result_messages import put_named_result
from tdb_server.workers.engine_loading import model_info
from transformer_debugger.v1.transformer_debugger_service_pb2 import DebugRequest, InferResponse

from tests.golden.compare import differences
from tests.golden.rounding_noise import without_rounding_noise

GOLDENS = Path(__file__).parent
FIXTURES = GOLDENS.parent / "fixtures"
FILES = sorted(GOLDENS.glob("*/*.json.gz"))


@cache
def engine(fixture: str, sites: tuple[str, ...], device: str, dtype: str = "float32") -> Engine:
    folder = FIXTURES / fixture
    decoder = load_decoder(folder, device, getattr(torch, dtype))
    autoencoders = fit_dictionaries(
        read_dictionaries([folder / "autoencoders" / site for site in sites], decoder.config), decoder
    )
    return Engine(decoder, autoencoders)


def served(fixture: str, running: Engine) -> ModelInfo:
    return model_info(fixture, "", "float32", running)


@cache
def tokenizer(fixture: str) -> Tokenizer:
    return Tokenizer(FIXTURES / fixture)


def answer(golden: dict[str, Any], device: str) -> dict[str, Any]:
    """The body that the service would answer the golden's request with."""
    endpoint, body = golden["endpoint"], golden["request"]
    match endpoint:
        case "batched_tdb":
            request: Any = debug_request(body)
        case "batched":
            request = infer_request(body)
        case _:
            request = single_infer_request(endpoint, body)
    parse: Any = parse_debug_request if isinstance(request, DebugRequest) else parse_infer_request
    running = engine(golden["fixture"], tuple(golden["sites"]), device)
    info = served(golden["fixture"], running)
    tokens = tokenizer(golden["fixture"])
    sub_requests = parse(request, info, Limits(), tokens)
    response = InferResponse()
    for one in sub_requests:
        token_ids = one.inference.token_ids
        response.sub_responses.add(token_ids=token_ids, token_strings=tokens.token_strings(token_ids))
    for _, event in running.run([Call("1", sub_requests)], lambda _: False):
        match event:
            case NamedResult():
                prompt = sub_requests[event.sub_request_index].inference.token_ids
                message = response.sub_responses[event.sub_request_index].results.add()
                put_named_result(message, event, tokens, prompt)
            case ObjectiveValues():
                sub_response = response.sub_responses[event.sub_request_index]
                if event.loss is not None:
                    sub_response.loss = event.loss
                if event.activation_value is not None:
                    sub_response.activation_value_for_backward_pass = event.activation_value
    body = batched_response(response) if endpoint.startswith("batched") else single_response(response)
    return json.loads(b"".join(json_pieces(body)))


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: f"{path.parent.name}/{path.name.removesuffix('.json.gz')}"
)
def test_answer_agrees_with_golden(path: Path, device: str) -> None:
    golden = json.loads(gzip.decompress(path.read_bytes()))
    body = answer(golden, device)
    assert differences(without_rounding_noise(golden, body), body) == []


def test_all_goldens_are_here() -> None:
    assert len(FILES) == 77

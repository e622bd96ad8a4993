"""`ModelService`: what is served, and its tokens."""

from __future__ import annotations

import asyncio
from typing import Any

from transformer_debugger.v1.model_service_pb2 import (
    DetokenizeRequest,
    DetokenizeResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceServicer

from tdb_server.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tdb_server.model.tokenizer import Tokenizer
from tdb_server.service.beginning_of_text import bos_violations, with_bos
from tdb_server.service.caller import current_caller
from tdb_server.service.enum_names import PRIORITIES
from tdb_server.service.model_messages import model_info_message, put_bos
from tdb_server.service.served_model import ModelSlot

MAX_TEXT_BYTES = 256 * 1024
MAX_TOKEN_IDS = 64 * 1024
SHORT_TEXT = 4096


class ModelService(ModelServiceServicer):
    """Answers from what the front knows; no worker is asked."""

    def __init__(self, slot: ModelSlot, server_version: str) -> None:
        self._slot = slot
        self._server_version = server_version

    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:  # noqa: N802
        """See the proto."""
        model = self._slot.model()
        own = current_caller().limits
        message = model_info_message(model.info, own.within(model.limits), self._server_version)
        message.limits.max_priority = PRIORITIES.number(own.max_priority)
        put_bos(message, model.tokenizer)
        return GetModelInfoResponse(model_info=message)

    async def Tokenize(self, request: TokenizeRequest, context: Any) -> TokenizeResponse:  # noqa: N802
        """See the proto. Long texts are split beside the event loop."""
        tokenizer = self._slot.model().tokenizer
        _check_bos(request, tokenizer)
        n_bytes = len(request.text.encode())
        if n_bytes > MAX_TEXT_BYTES:
            description = f"has {n_bytes} bytes as UTF-8; at most {MAX_TEXT_BYTES} are taken"
            raise InvalidRequest([FieldViolation("text", description, "OUT_OF_RANGE")])
        if n_bytes <= SHORT_TEXT:
            encoded = tokenizer.encode(request.text)
        else:
            encoded = await asyncio.to_thread(tokenizer.encode, request.text)
        token_ids = with_bos(encoded, request.add_bos, tokenizer)
        return TokenizeResponse(
            token_ids=token_ids,
            token_strings=tokenizer.token_strings(token_ids),
            bos_added=len(token_ids) > len(encoded),
            prompt_adds_bos=len(with_bos(encoded, None, tokenizer)) > len(encoded),
        )

    async def Detokenize(self, request: DetokenizeRequest, context: Any) -> DetokenizeResponse:  # noqa: N802
        """See the proto."""
        model = self._slot.model()
        _check_bos(request, model.tokenizer)
        token_ids = list(request.token_ids)
        if len(token_ids) > MAX_TOKEN_IDS:
            description = f"has {len(token_ids)} entries; at most {MAX_TOKEN_IDS} are taken"
            raise InvalidRequest([FieldViolation("token_ids", description, "OUT_OF_RANGE")])
        last = model.info.vocabulary_size - 1
        violations = [
            FieldViolation(f"token_ids[{index}]", f"must be 0 to {last}: {token_id}", "UNKNOWN_TOKEN_ID")
            for index, token_id in enumerate(token_ids)
            if not 0 <= token_id <= last
        ]
        if violations:
            raise InvalidRequest(violations)
        token_ids = list(with_bos(token_ids, request.add_bos, model.tokenizer))
        text = await asyncio.to_thread(model.tokenizer.decode, token_ids)
        return DetokenizeResponse(text=text, token_strings=model.tokenizer.token_strings(token_ids))


def _check_bos(request: TokenizeRequest | DetokenizeRequest, tokenizer: Tokenizer) -> None:
    violations = list(bos_violations(request.add_bos, tokenizer, "add_bos"))
    if violations:
        raise FailedPrecondition(violations)

"""`ModelService`: what is served, and its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

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
from tdb_server.service.fair_threads import FairThreads
from tdb_server.service.long_requests import LONG_REQUEST_BYTES, MEMORY_FACTOR
from tdb_server.service.message_survey import MAX_TOKEN_IDS
from tdb_server.service.model_messages import model_info_message, put_conventions
from tdb_server.service.request_reader import MAX_VIOLATIONS
from tdb_server.service.served_model import ModelSlot, ServedModel
from tdb_server.workers.scheduler import Scheduler

MAX_TEXT_BYTES = 256 * 1024
FEW_TOKEN_IDS = 1024
ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True, slots=True)
class ModelService(ModelServiceServicer):
    """Answers from what the front knows; no worker is asked.

    Attributes:
        slot: where the model is.
        scheduler: counts calls.
        threads: where long texts are cut and put together.
        server_version: version of this software.
    """

    slot: ModelSlot
    scheduler: Scheduler
    threads: FairThreads
    server_version: str

    async def GetModelInfo(self, request: GetModelInfoRequest, context: Any) -> GetModelInfoResponse:  # noqa: N802
        """See the proto."""
        model = self.slot.model()
        own = current_caller().limits
        limits = own.within(model.limits)
        message = model_info_message(model.info, limits, self.server_version)
        message.limits.max_priority = PRIORITIES.number(own.max_priority)
        put_conventions(message, model.tokenizer)
        message.limits.max_prompt_bytes = limits.prompt_bytes(
            model.info.context_length, model.tokenizer.longest_token_bytes
        )
        return GetModelInfoResponse(model_info=message)

    async def Tokenize(self, request: TokenizeRequest, context: Any) -> TokenizeResponse:  # noqa: N802
        """See the proto. Long texts are cut beside the event loop."""
        tokenizer = self.slot.model().tokenizer
        _check_bos(request, tokenizer)
        n_bytes = len(request.text.encode())
        if n_bytes > MAX_TEXT_BYTES:
            description = f"has {n_bytes} bytes as UTF-8; at most {MAX_TEXT_BYTES} are taken"
            raise InvalidRequest([FieldViolation("text", description, "OUT_OF_RANGE")])
        if n_bytes <= LONG_REQUEST_BYTES:
            return _tokenized(request, tokenizer)
        return await self._beside_the_loop(n_bytes, lambda: _tokenized(request, tokenizer))

    async def Detokenize(self, request: DetokenizeRequest, context: Any) -> DetokenizeResponse:  # noqa: N802
        """See the proto."""
        model = self.slot.model()
        _check_bos(request, model.tokenizer)
        if len(request.token_ids) > MAX_TOKEN_IDS:
            description = f"has {len(request.token_ids)} entries; at most {MAX_TOKEN_IDS} are taken"
            raise InvalidRequest([FieldViolation("token_ids", description, "OUT_OF_RANGE")])
        if len(request.token_ids) <= FEW_TOKEN_IDS:
            return _detokenized(request, model)
        return await self._beside_the_loop(request.ByteSize(), lambda: _detokenized(request, model))

    async def _beside_the_loop(self, n_bytes: int, answer: Callable[[], ResponseT]) -> ResponseT:
        caller = current_caller()
        with self.scheduler.call_without_worker(caller):
            return await self.threads.run(caller.name, MEMORY_FACTOR * n_bytes, answer)


def _tokenized(request: TokenizeRequest, tokenizer: Tokenizer) -> TokenizeResponse:
    encoded = tokenizer.encode(request.text)
    token_ids = with_bos(encoded, request.add_bos, tokenizer)
    return TokenizeResponse(
        token_ids=token_ids,
        token_strings=tokenizer.token_strings(token_ids),
        bos_added=len(token_ids) > len(encoded),
        special_token_indices=[i for i, one in enumerate(token_ids) if tokenizer.is_special(one)],
        prompt_adds_bos=len(with_bos(encoded, None, tokenizer)) > len(encoded),
    )


def _detokenized(request: DetokenizeRequest, model: ServedModel) -> DetokenizeResponse:
    last, tokenizer = model.info.vocabulary_size - 1, model.tokenizer
    unknown = [index for index, one in enumerate(request.token_ids) if not 0 <= one <= last]
    if unknown:
        violations = [
            FieldViolation(
                f"token_ids[{index}]", f"must be 0 to {last}: {request.token_ids[index]}", "UNKNOWN_TOKEN_ID"
            )
            for index in unknown[:MAX_VIOLATIONS]
        ]
        raise InvalidRequest(violations, len(unknown) - len(violations))
    token_ids = list(with_bos(request.token_ids, request.add_bos, tokenizer))
    return DetokenizeResponse(
        text=tokenizer.decode(token_ids), token_strings=tokenizer.token_strings(token_ids)
    )


def _check_bos(request: TokenizeRequest | DetokenizeRequest, tokenizer: Tokenizer) -> None:
    violations = list(bos_violations(request.add_bos, tokenizer, "add_bos"))
    if violations:
        raise FailedPrecondition(violations)

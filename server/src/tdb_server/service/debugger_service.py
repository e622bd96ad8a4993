"""`TransformerDebuggerService`: debug and general requests, answered at once or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from transformer_debugger.v1 import call_pb2, result_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    InferResponse,
    StreamDebugResponse,
    StreamInferResponse,
)
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from tdb_server.service.call_events import CallEvents, IncompleteAnswer
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.streaming import StreamMessage
from tdb_server.workers.ticket import Unary

Response = TypeVar("Response", DebugResponse, InferResponse)


class DebuggerService(TransformerDebuggerServiceServicer):
    """Debug is Infer with the sub-requests spelled out: both take the same way.

    Args:
        calls: who answers.
        max_response_bytes: of an answer that is not streamed.
    """

    def __init__(self, calls: CallEvents, max_response_bytes: int) -> None:
        self._calls = calls
        self._max_response_bytes = max_response_bytes

    async def Debug(self, request: DebugRequest, context: Any) -> DebugResponse:  # noqa: N802
        """See the proto."""
        unary = Unary("StreamDebug", self._max_response_bytes)
        events = self._calls.answer(request, parse_debug_request, StreamDebugResponse, unary)
        return await self._collected(DebugResponse(), events, unary)

    def StreamDebug(self, request: DebugRequest, context: Any) -> AsyncIterator[StreamDebugResponse]:  # noqa: N802
        """See the proto."""
        return self._calls.answer(request, parse_debug_request, StreamDebugResponse)

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        """See the proto."""
        unary = Unary("StreamInfer", self._max_response_bytes)
        events = self._calls.answer(request, parse_infer_request, StreamInferResponse, unary)
        return await self._collected(InferResponse(), events, unary)

    def StreamInfer(self, request: InferRequest, context: Any) -> AsyncIterator[StreamInferResponse]:  # noqa: N802
        """See the proto."""
        return self._calls.answer(request, parse_infer_request, StreamInferResponse)

    async def _collected(
        self, response: Response, messages: AsyncGenerator[StreamMessage], unary: Unary
    ) -> Response:
        """All messages of a stream in one.

        Raises:
            ResponseTooLarge: as soon as that is certain.
        """
        collected = _CollectedAnswer(response)
        async with aclosing(messages):
            async for message in messages:
                collected.add(message)
                if collected.n_bytes > unary.max_response_bytes:
                    raise unary.too_large(collected.n_bytes)
                await asyncio.sleep(0)  # other calls get their turn between the parts of a long answer
        if collected.n_messages != collected.message_count:
            raise IncompleteAnswer(f"{collected.n_messages} messages of {collected.message_count}")
        return response


class _CollectedAnswer:
    """A response that is filled message by message."""

    def __init__(self, response: DebugResponse | InferResponse) -> None:
        self._response = response
        self._results: dict[tuple[int, str], result_pb2.NamedResult] = {}
        self.n_bytes = self.n_messages = 0
        self.message_count = -1
        """That `finished` tells of."""

    def add(self, message: StreamDebugResponse | StreamInferResponse) -> None:
        self.n_bytes += message.ByteSize()
        self.n_messages += 1
        match message.WhichOneof("event"):
            case "started":
                self._add_started(message.started)
            case "result":
                self._add_part(message.result)
            case "values":
                self._add_values(message.values)
            case "finished":
                self._response.timings.CopyFrom(message.finished.timings)
                self.message_count = message.finished.message_count

    def _add_started(self, started: call_pb2.Started) -> None:
        response = self._response
        response.info.CopyFrom(started.info)
        response.cached = started.cached
        if started.HasField("estimated_cost"):
            response.estimated_cost.CopyFrom(started.estimated_cost)
            return
        for tokens in started.sub_requests:  # their fields are called the same
            response.sub_responses.add(**{field.name: value for field, value in tokens.ListFields()})

    def _add_part(self, part: call_pb2.ResultPart) -> None:
        key = (part.sub_request_index, part.result.name)
        if key in self._results:
            self._results[key].MergeFrom(part.result)
        else:
            results = self._response.sub_responses[part.sub_request_index].results
            results.append(part.result)
            self._results[key] = results[-1]

    def _add_values(self, values: call_pb2.SubRequestValues) -> None:
        for field, value in values.ListFields():
            if field.name != "sub_request_index":
                setattr(self._response.sub_responses[values.sub_request_index], field.name, value)

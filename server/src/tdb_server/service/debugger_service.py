"""`TransformerDebuggerService`: debug and general requests, answered at once or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from transformer_debugger.v1 import call_pb2, result_pb2, tensor_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    InferResponse,
    StreamDebugResponse,
    StreamInferResponse,
)
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from tdb_server.service.call_events import CallEvents, Unary
from tdb_server.service.error_status import ResponseTooLarge
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.streaming import StreamMessage

Response = TypeVar("Response", DebugResponse, InferResponse)
StreamResponse = TypeVar("StreamResponse", StreamDebugResponse, StreamInferResponse)


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
        events = self._calls.answer(request, parse_debug_request, unary)
        return await self._collected(DebugResponse(), events, unary)

    async def StreamDebug(self, request: DebugRequest, context: Any) -> AsyncIterator[StreamDebugResponse]:  # noqa: N802
        """See the proto."""
        async with aclosing(self._calls.answer(request, parse_debug_request)) as events:
            async for event in events:
                yield _enveloped(StreamDebugResponse(), event)

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        """See the proto."""
        unary = Unary("StreamInfer", self._max_response_bytes)
        events = self._calls.answer(request, parse_infer_request, unary)
        return await self._collected(InferResponse(), events, unary)

    async def StreamInfer(self, request: InferRequest, context: Any) -> AsyncIterator[StreamInferResponse]:  # noqa: N802
        """See the proto."""
        async with aclosing(self._calls.answer(request, parse_infer_request)) as events:
            async for event in events:
                yield _enveloped(StreamInferResponse(), event)

    async def _collected(
        self, response: Response, events: AsyncGenerator[StreamMessage], unary: Unary
    ) -> Response:
        """All events in one message.

        Raises:
            ResponseTooLarge: as soon as that is certain.
        """
        collected = _CollectedAnswer(response)
        async with aclosing(events):
            async for event in events:
                collected.add(event)
                if collected.n_bytes > unary.max_response_bytes:
                    raise ResponseTooLarge(collected.n_bytes, unary.max_response_bytes, unary.streaming_call)
                await asyncio.sleep(0)  # other calls get their turn between the parts of a long answer
        return response


class _CollectedAnswer:
    """A response that is filled event by event."""

    def __init__(self, response: DebugResponse | InferResponse) -> None:
        self._response = response
        self._results: dict[tuple[int, str], result_pb2.NamedResult] = {}
        self.n_bytes = 0

    def add(self, event: StreamMessage) -> None:
        response = self._response
        self.n_bytes += event.ByteSize()
        match event:
            case call_pb2.Started():
                response.info.CopyFrom(event.info)
                response.cached = event.cached
                if event.HasField("estimated_cost"):
                    response.estimated_cost.CopyFrom(event.estimated_cost)
                    return
                for tokens in event.sub_requests:
                    response.sub_responses.add(token_ids=tokens.token_ids, token_strings=tokens.token_strings)
            case call_pb2.ResultPart():
                key = (event.sub_request_index, event.result.name)
                if key in self._results:
                    self._results[key].MergeFrom(event.result)
                else:
                    results = response.sub_responses[event.sub_request_index].results
                    results.append(event.result)
                    self._results[key] = results[-1]
            case call_pb2.SubRequestValues():
                sub_response = response.sub_responses[event.sub_request_index]
                if event.HasField("loss"):
                    sub_response.loss = event.loss
                if event.HasField("activation_value_for_backward_pass"):
                    sub_response.activation_value_for_backward_pass = event.activation_value_for_backward_pass
            case call_pb2.Finished():
                response.timings.CopyFrom(event.timings)


def _enveloped(response: StreamResponse, event: StreamMessage) -> StreamResponse:
    match event:
        case call_pb2.Started():
            response.started.CopyFrom(event)
        case call_pb2.ResultPart():
            response.result.CopyFrom(event)
        case tensor_pb2.TensorChunk():
            response.tensor_chunk.CopyFrom(event)
        case call_pb2.SubRequestValues():
            response.values.CopyFrom(event)
        case call_pb2.Finished():
            response.finished.CopyFrom(event)
    return response

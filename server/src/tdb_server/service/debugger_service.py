"""`TransformerDebuggerService`: debug and general requests, answered at once or piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from transformer_debugger.v1 import call_pb2, result_pb2
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferEdgesRequest,
    InferEdgesResponse,
    InferRequest,
    InferResponse,
    StreamDebugResponse,
    StreamInferEdgesResponse,
    StreamInferResponse,
)
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceServicer

from tdb_server.service.call_events import CallEvents, IncompleteAnswer
from tdb_server.service.edges_parsing import parse_edges_request
from tdb_server.service.request_parsing import parse_debug_request, parse_infer_request
from tdb_server.service.streaming import StreamMessage
from tdb_server.workers.ticket import Unary

Response = TypeVar("Response", DebugResponse, InferResponse, InferEdgesResponse)


@dataclass(frozen=True, slots=True)
class DebuggerService(TransformerDebuggerServiceServicer):
    """Requests for debugging and for edges become general sub-requests; from there on all go the same way.

    Attributes:
        calls: answers requests as events of a stream.
        max_response_bytes: of an answer that is not streamed.
        max_block_bytes: of its results that are one block of numbers each, such as a matrix of edges.
    """

    calls: CallEvents
    max_response_bytes: int
    max_block_bytes: int

    async def Debug(self, request: DebugRequest, context: Any) -> DebugResponse:  # noqa: N802
        """See the proto."""
        unary = self._unary("StreamDebug")
        events = self.calls.answer(request, parse_debug_request, StreamDebugResponse, unary)
        return await self._collected(DebugResponse(), events, unary)

    def StreamDebug(self, request: DebugRequest, context: Any) -> AsyncIterator[StreamDebugResponse]:  # noqa: N802
        """See the proto."""
        return self.calls.answer(request, parse_debug_request, StreamDebugResponse)

    async def Infer(self, request: InferRequest, context: Any) -> InferResponse:  # noqa: N802
        """See the proto."""
        unary = self._unary("StreamInfer")
        events = self.calls.answer(request, parse_infer_request, StreamInferResponse, unary)
        return await self._collected(InferResponse(), events, unary)

    def StreamInfer(self, request: InferRequest, context: Any) -> AsyncIterator[StreamInferResponse]:  # noqa: N802
        """See the proto."""
        return self.calls.answer(request, parse_infer_request, StreamInferResponse)

    async def InferEdges(self, request: InferEdgesRequest, context: Any) -> InferEdgesResponse:  # noqa: N802
        """See the proto."""
        unary = self._unary("StreamInferEdges")
        events = self.calls.answer(request, parse_edges_request, StreamInferEdgesResponse, unary)
        return await self._collected(InferEdgesResponse(), events, unary)

    def StreamInferEdges(  # noqa: N802
        self, request: InferEdgesRequest, context: Any
    ) -> AsyncIterator[StreamInferEdgesResponse]:
        """See the proto."""
        return self.calls.answer(request, parse_edges_request, StreamInferEdgesResponse)

    def _unary(self, streaming_call: str) -> Unary:
        return Unary(streaming_call, self.max_response_bytes, self.max_block_bytes)

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


@dataclass(slots=True)
class _CollectedAnswer:
    """A response that is filled message by message. The last message, `finished`, says how many there are."""

    response: DebugResponse | InferResponse | InferEdgesResponse
    n_bytes: int = 0
    n_messages: int = 0
    message_count: int = -1
    _results: dict[tuple[int, str], result_pb2.NamedResult] = field(default_factory=dict)

    def add(self, message: StreamDebugResponse | StreamInferResponse | StreamInferEdgesResponse) -> None:
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
                self.response.timings.CopyFrom(message.finished.timings)
                self.message_count = message.finished.message_count

    def _add_started(self, started: call_pb2.Started) -> None:
        response = self.response
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
            results = self.response.sub_responses[part.sub_request_index].results
            results.append(part.result)
            self._results[key] = results[-1]

    def _add_values(self, values: call_pb2.SubRequestValues) -> None:
        of_row = {one.name: value for one, value in values.ListFields() if one.name != "sub_request_index"}
        self.response.sub_responses[values.sub_request_index].MergeFrom(result_pb2.SubResponse(**of_row))

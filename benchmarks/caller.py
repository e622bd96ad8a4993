"""Calls over gRPC, timed and with their bytes counted.

Requests are made and answers read by the client library's own code; only the step from bytes to messages is
taken here, so that the bytes can be counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from google.protobuf.message import Message
from tdb_client import (
    DebugSubRequest,
    Finished,
    InferenceSubRequest,
    ResultReady,
    ScoredTokensResult,
    Timings,
)
from tdb_client.connection import Connection
from tdb_client.decoding import timings
from tdb_client.encoding import debug_request, infer_request
from tdb_client.events import Event
from tdb_client.streams import EventReader
from transformer_debugger.v1.transformer_debugger_service_pb2 import (
    DebugRequest,
    DebugResponse,
    InferRequest,
    StreamDebugResponse,
    StreamInferResponse,
)

SERVICE = "/transformer_debugger.v1.TransformerDebuggerService"
MAX_RECEIVE_BYTES = 64 * 2**20
CALL_SECONDS = 120.0
FRAME_BYTES = 5  # that gRPC puts before every message

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class TimedCall:
    """One call.

    Attributes:
        seconds: from making the request to having read the answer, but for what is read when looked at.
        first_result_seconds: until the first result was whole; the same for a call that is not streamed.
        timings: where the server says that the time went.
        n_bytes: of all messages, the request included, without HTTP/2's own.
        lists_seconds: to read all of its token lists afterwards; 0 for a call that is not streamed.
        peak_memory_bytes: what the server says about its device; 0 when not known.
        events: of the stream; empty for a call that is not streamed.
    """

    seconds: float
    first_result_seconds: float
    timings: Timings
    n_bytes: int
    lists_seconds: float = 0.0
    peak_memory_bytes: int = 0
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class ChunkedTensors:
    """Tensor chunks of one stream: bytes, and seconds from the tensor's announcement to the last of them."""

    n_bytes: int
    seconds: float


class Caller:
    """One connection to a server, at `HOST:PORT`."""

    def __init__(self, address: str) -> None:
        self._channel = Connection(address, max_receive_bytes=MAX_RECEIVE_BYTES).open()
        self._debug = self._channel.unary_unary(
            f"{SERVICE}/Debug", DebugRequest.SerializeToString, _counted(DebugResponse)
        )
        self._stream_debug = self._channel.unary_stream(
            f"{SERVICE}/StreamDebug", DebugRequest.SerializeToString, _counted(StreamDebugResponse)
        )
        self._stream_infer = self._channel.unary_stream(
            f"{SERVICE}/StreamInfer", InferRequest.SerializeToString, _counted(StreamInferResponse)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def debug(self, sub_requests: Sequence[DebugSubRequest]) -> TimedCall:
        """Debug: the whole answer in one message.

        Raises:
            grpc.RpcError: the call failed.
        """
        start = time.perf_counter()
        request = debug_request(sub_requests)
        n_bytes, response = self._debug(request, timeout=CALL_SECONDS)
        seconds = time.perf_counter() - start
        n_bytes += request.ByteSize() + FRAME_BYTES
        return TimedCall(seconds, seconds, timings(response.timings), n_bytes)

    def stream_debug(self, sub_requests: Sequence[DebugSubRequest]) -> TimedCall:
        """StreamDebug, read to the end.

        Raises:
            grpc.RpcError: the call failed.
        """
        start = time.perf_counter()
        request = debug_request(sub_requests)
        reader = EventReader(len(sub_requests))
        n_bytes = request.ByteSize() + FRAME_BYTES
        first_result = None
        events: list[Event] = []
        for n_message_bytes, message in self._stream_debug(request, timeout=CALL_SECONDS):
            n_bytes += n_message_bytes
            for event in reader.read(message):
                if first_result is None and isinstance(event, ResultReady):
                    first_result = time.perf_counter() - start
                events.append(event)
        seconds = time.perf_counter() - start
        reader.end()
        finished = next(one for one in events if isinstance(one, Finished))
        return TimedCall(
            seconds,
            seconds if first_result is None else first_result,
            finished.timings,
            n_bytes,
            _read_lists(events),
            finished.peak_memory_bytes,
            tuple(events),
        )

    def stream_tensors(self, sub_request: InferenceSubRequest) -> ChunkedTensors:
        """StreamInfer, of which only the tensor chunks count; checksums are checked in the time measured.

        Raises:
            grpc.RpcError: the call failed.
        """
        reader = EventReader(1)
        n_bytes = 0
        announced = last = previous = time.perf_counter()
        for _, message in self._stream_infer(infer_request([sub_request]), timeout=CALL_SECONDS):
            list(reader.read(message))
            now = time.perf_counter()
            if message.WhichOneof("event") == "tensor_chunk":
                announced = announced if n_bytes else previous
                n_bytes += len(message.tensor_chunk.data)
                last = now
            previous = now
        reader.end()
        return ChunkedTensors(n_bytes, last - announced)


def _read_lists(events: Sequence[Event]) -> float:
    """Looks at every token list, and says how long that took."""
    start = time.perf_counter()
    for event in events:
        if isinstance(event, ResultReady) and isinstance(event.result, ScoredTokensResult):
            tuple(event.result.top_tokens)
    return time.perf_counter() - start


def _counted(kind: type[Answer]) -> Callable[[bytes], tuple[int, Answer]]:
    """Reads a message and says how many bytes it was."""

    def read(data: bytes) -> tuple[int, Answer]:
        return len(data) + FRAME_BYTES, kind.FromString(data)

    return read

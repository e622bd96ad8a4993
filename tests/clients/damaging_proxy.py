"""A proxy between client and server that damages tensors on the way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from transformer_debugger.v1 import model_service_pb2_grpc, transformer_debugger_service_pb2_grpc
from transformer_debugger.v1.transformer_debugger_service_pb2 import StreamDebugResponse

from tests.running_server import RunningServer


class Debugger(transformer_debugger_service_pb2_grpc.TransformerDebuggerServiceServicer):
    """Passes streams on, with the last bit of every chunk of a tensor turned."""

    def __init__(self, server: RunningServer) -> None:
        self._debugger = server.debugger

    def StreamDebug(self, request: Any, context: grpc.ServicerContext) -> Iterator[StreamDebugResponse]:  # noqa: N802
        for event in self._debugger.StreamDebug(request):
            if event.HasField("tensor_chunk"):
                *others, last = event.tensor_chunk.data
                event.tensor_chunk.data = bytes([*others, last ^ 1])
            yield event


class Model(model_service_pb2_grpc.ModelServiceServicer):
    """Passes calls on as they are."""

    def __init__(self, server: RunningServer) -> None:
        self._model = server.model

    def GetModelInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._model.GetModelInfo(request)

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._model.Tokenize(request)


@contextmanager
def damaging(server: RunningServer) -> Iterator[int]:
    """The port of a proxy to the server."""
    proxy = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    transformer_debugger_service_pb2_grpc.add_TransformerDebuggerServiceServicer_to_server(
        Debugger(server), proxy
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Model(server), proxy)
    port = proxy.add_insecure_port("127.0.0.1:0")
    proxy.start()
    try:
        yield port
    finally:
        proxy.stop(grace=1).wait()

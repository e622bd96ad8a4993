"""The client for asyncio programs."""

# ruff: noqa: ASYNC109 - the timeouts are deadlines that the server sees

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from transformer_debugger.v1 import model_service_pb2 as model_pb2
from transformer_debugger.v1 import transformer_debugger_service_pb2 as service_pb2
from transformer_debugger.v1.call_pb2 import Priority
from transformer_debugger.v1.model_service_pb2_grpc import ModelServiceStub
from transformer_debugger.v1.transformer_debugger_service_pb2_grpc import TransformerDebuggerServiceStub

from tdb_client import decoding, encoding
from tdb_client.attention import N_HEADS, attention_requests, with_answers
from tdb_client.compatibility import CHECK_SECONDS, VersionCheck
from tdb_client.connection import Connection, Tls, default_server
from tdb_client.debug_result import DebugResult, debug_result
from tdb_client.errors import call_errors
from tdb_client.events import Event, collected_async, inference_results
from tdb_client.health import HealthStatus, health_check, health_request, health_status
from tdb_client.inference import InferenceSubRequest
from tdb_client.interventions import AblationWords, TraceWords
from tdb_client.model_info import ModelInfo, model_info
from tdb_client.names import enum_value
from tdb_client.requests import (
    AttentionComponent,
    DebugSubRequest,
    MlpComponent,
    SubRequest,
    SubRequestT,
    TokenWords,
    prompt_length,
    prompts_to_tokenize,
    resolve,
)
from tdb_client.results import EstimatedCost, InferenceResult, PromptTokens
from tdb_client.streams import EventReader
from tdb_client.token_counting import TokenCounting
from tdb_client.value_check import check_text, check_values

if TYPE_CHECKING:  # generic for the type checker alone
    VersionCall = grpc.aio.UnaryUnaryCall[model_pb2.GetModelInfoRequest, model_pb2.GetModelInfoResponse]

Request = TypeVar("Request", service_pb2.DebugRequest, service_pb2.InferRequest)
Response = TypeVar("Response", service_pb2.StreamDebugResponse, service_pb2.StreamInferResponse)


class AsyncClient:
    """Client for asyncio: the same methods with `await`, and `async for` over streams.

    It belongs to the event loop that runs when it is made.

    Example:
        async with AsyncClient() as client:
            prompts = ["When Mary and John went to the store, John gave a drink to", "John gave a drink to"]
            results = await asyncio.gather(*(client.debug(prompt, " Mary") for prompt in prompts))

    Args:
        server: `HOST:PORT` of the server; `dns:///NAME:PORT` or `ipv4:ADDRESS:PORT,ADDRESS:PORT` for several,
            which get calls in turn.
        timeout: seconds that each call may take unless it says otherwise; None for no limit.
        tls: how to check the server's certificate; None for a connection in clear.
        token: bearer token that is sent with every call.
        max_receive_bytes: largest message that is taken; None for gRPC's 4 MiB.
        priority: of its calls: `interactive`, or `sweep` for many that a program asks for, which let others
            go first.

    Every method raises a CallError when the call fails and a ResponseError when the answer is malformed.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        timeout: float | None = 120.0,
        tls: Tls | None = None,
        token: str | None = None,
        max_receive_bytes: int | None = None,
        priority: str = "interactive",
    ) -> None:
        self._priority = enum_value(Priority, priority)
        self._connection = Connection(server or default_server(), tls, token, timeout, max_receive_bytes)
        self._channel = self._connection.open_async()
        self._debugger = TransformerDebuggerServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._versions = VersionCheck(self._connection.server)
        self._counting = TokenCounting()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls in progress are cancelled."""
        await self._channel.close()

    async def debug(
        self,
        prompt: str,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        k: int = 10,
        ablate: AblationWords | Sequence[AblationWords] = (),
        trace: TraceWords | None = None,
        downstream: TraceWords | None = None,
        mlp: MlpComponent = "neuron",
        attention: AttentionComponent = "attention_head",
        hide_early_layers: bool = False,
        add_bos: bool | None = None,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> DebugResult:
        """Explains why the model predicts `target` rather than `distractor`; see Client.debug."""
        sub_request = DebugSubRequest.of(
            prompt,
            target,
            distractor,
            k=k,
            ablate=ablate,
            trace=trace,
            downstream=downstream,
            mlp=mlp,
            attention=attention,
            hide_early_layers=hide_early_layers,
            add_bos=add_bos,
        )
        results = await self.debug_many(
            [sub_request], timeout=timeout, request_id=request_id, on_event=on_event
        )
        return results[0]

    async def debug_many(
        self,
        sub_requests: Sequence[DebugSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> list[DebugResult]:
        """Explains several prompts of the same length in one call; row i of every result is the same node."""

        def stream(seconds: float | None) -> AsyncGenerator[Event]:
            return self.stream_debug(sub_requests, timeout=seconds, request_id=request_id)

        seconds = self._connection.seconds(timeout)
        results = inference_results(await collected_async(stream, seconds, on_event))
        return [debug_result(*one) for one in zip(sub_requests, results, strict=True)]

    async def with_attention(
        self, results: Sequence[DebugResult], *, n_heads: int = N_HEADS, timeout: float | None = None
    ) -> list[DebugResult]:
        """Adds the whole attention of the heads that matter most; see Client.with_attention."""
        requests = attention_requests(results, n_heads)
        if not requests:
            return list(results)
        return with_answers(results, await self.infer(requests, timeout=timeout))

    async def infer(
        self,
        sub_requests: Sequence[InferenceSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> list[InferenceResult]:
        """Runs general sub-requests in one call and returns their results by name.

        No norm's scale is held constant on the way back unless a sub-request says so, but for that of the
        norm through which a traced node reads; `debug` holds the final one as well.
        """

        def stream(seconds: float | None) -> AsyncGenerator[Event]:
            return self.stream_infer(sub_requests, timeout=seconds, request_id=request_id)

        seconds = self._connection.seconds(timeout)
        return inference_results(await collected_async(stream, seconds, on_event))

    async def stream_debug(
        self, sub_requests: Sequence[DebugSubRequest], *, timeout: float | None = None, request_id: str = ""
    ) -> AsyncGenerator[Event]:
        """Yields events as they arrive: Started, then ResultReady and Values, then Finished.

        Closing the iterator cancels the call.
        """
        request = encoding.debug_request(
            await self._resolved(sub_requests, timeout), request_id=request_id, priority=self._priority
        )
        async with aclosing(
            self._events(self._debugger.StreamDebug, request, sub_requests, timeout)
        ) as events:
            async for event in events:
                yield event

    async def stream_infer(
        self,
        sub_requests: Sequence[InferenceSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
    ) -> AsyncGenerator[Event]:
        """Yields the events of general sub-requests as they arrive; as stream_debug."""
        request = encoding.infer_request(
            await self._resolved(sub_requests, timeout), request_id=request_id, priority=self._priority
        )
        async with aclosing(
            self._events(self._debugger.StreamInfer, request, sub_requests, timeout)
        ) as events:
            async for event in events:
                yield event

    async def estimate(
        self, sub_requests: Sequence[DebugSubRequest | InferenceSubRequest], *, timeout: float | None = None
    ) -> EstimatedCost:
        """Checks sub-requests of one kind and says what they would cost, without running them."""
        request = encoding.estimate_request(await self._resolved(sub_requests, timeout))
        seconds, metadata = self._connection.seconds(timeout), self._connection.metadata()
        with call_errors(self._connection.server):
            if isinstance(request, service_pb2.DebugRequest):
                debug = await self._debugger.Debug(request, timeout=seconds, metadata=metadata)
                return decoding.estimated_cost(debug.estimated_cost)
            infer = await self._debugger.Infer(request, timeout=seconds, metadata=metadata)
            return decoding.estimated_cost(infer.estimated_cost)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Describes the model, its autoencoders, what can be asked of it and every limit."""
        request = model_pb2.GetModelInfoRequest()
        seconds, metadata = self._connection.seconds(timeout), self._connection.metadata()
        with call_errors(self._connection.server):
            response = await self._models.GetModelInfo(request, timeout=seconds, metadata=metadata)
        if self._versions.take_turn():
            self._versions.compare(response.model_info.api_version)
        return model_info(response.model_info)

    async def tokenize(
        self, text: str, *, add_bos: bool | None = None, timeout: float | None = None
    ) -> PromptTokens:
        """Splits text into the model's tokens, as prompts are split; see Client.tokenize."""
        tokens = await self._tokens(text, add_bos, timeout)
        self._counting.showed(text, tokens)
        return tokens

    async def _tokens(self, text: str, add_bos: bool | None, timeout: float | None) -> PromptTokens:
        check_text(text, "text")
        request = model_pb2.TokenizeRequest(text=text, add_bos=add_bos)
        seconds, metadata = self._connection.seconds(timeout), self._connection.metadata()
        with call_errors(self._connection.server):
            response = await self._models.Tokenize(request, timeout=seconds, metadata=metadata)
        return decoding.prompt_tokens(response)

    async def detokenize(
        self, token_ids: Sequence[int], *, add_bos: bool | None = None, timeout: float | None = None
    ) -> str:
        """Joins tokens into text; bytes that are not UTF-8 become U+FFFD. `add_bos` as in `tokenize`."""
        check_values(list(token_ids), "token_ids")
        request = model_pb2.DetokenizeRequest(token_ids=token_ids, add_bos=add_bos)
        seconds, metadata = self._connection.seconds(timeout), self._connection.metadata()
        with call_errors(self._connection.server):
            return (await self._models.Detokenize(request, timeout=seconds, metadata=metadata)).text

    async def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """Says whether the server, or one service by full name, is ready: `SERVING` when it is."""
        check_text(service, "service")
        request = health_request(service)
        seconds, metadata = self._connection.seconds(timeout), self._connection.metadata()
        with call_errors(self._connection.server):
            check = health_check(self._channel)
            return health_status(await check(request, timeout=seconds, metadata=metadata))

    async def _resolved(
        self, sub_requests: Sequence[SubRequestT], timeout: float | None
    ) -> list[SubRequestT]:
        """The sub-requests with tokens counted from the start; asks for the prompts' lengths where needed."""
        check_values(list(sub_requests), "sub_requests")
        prompts = prompts_to_tokenize(sub_requests)
        n_tokens = {
            (text, add_bos): prompt_length(await self._tokens(text, add_bos, timeout), add_bos)
            for text, add_bos in prompts
        }
        return [resolve(one, n_tokens) for one in sub_requests]

    async def _events(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        sub_requests: Sequence[SubRequest],
        timeout: float | None,
    ) -> AsyncGenerator[Event]:
        reader = EventReader(len(request.sub_requests))
        asked: VersionCall | None = None
        with call_errors(self._connection.server):
            call = method(
                request, timeout=self._connection.seconds(timeout), metadata=self._connection.metadata()
            )
            try:
                async for message in call:
                    asked = asked or self._ask_for_version()
                    for event in reader.read(message):
                        self._counting.look_at(event, sub_requests)
                        yield event
            finally:
                call.cancel()
        reader.end()
        if asked is not None:
            with suppress(grpc.RpcError):  # the call itself went well
                self._versions.compare((await asked).model_info.api_version)

    def _ask_for_version(self) -> VersionCall | None:
        """Asks beside a running call, the first time alone."""
        if not self._versions.take_turn():
            return None
        metadata = self._connection.metadata()
        request = model_pb2.GetModelInfoRequest()
        return self._models.GetModelInfo(request, timeout=CHECK_SECONDS, metadata=metadata)

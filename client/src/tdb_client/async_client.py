"""The client for asyncio programs."""

# ruff: noqa: ASYNC109 - the timeouts are deadlines that the server sees

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self

import grpc

from tdb_client.ablation_effects import AblationEffects, effects, in_words_of_nodes, requests_for_each
from tdb_client.attention import N_HEADS, attention_requests, numbers_by_call, with_answers
from tdb_client.call_splitting import Calls, Share
from tdb_client.chat import Chat, chats
from tdb_client.circuit import MAX_CALLS, Circuit
from tdb_client.circuit_nodes import WHOLE_NODE_TYPES, CircuitWords
from tdb_client.circuit_search import CircuitQuestion, CircuitsMeasured, RankBy, find_circuit
from tdb_client.client_core import Call, ClientCore, Flow, Result
from tdb_client.compatibility import CHECK_SECONDS
from tdb_client.connection import Connection
from tdb_client.debug_result import DebugResult
from tdb_client.edges import EdgeMethod, Edges, EdgesSubRequest
from tdb_client.errors import CallError, IncompleteResponseError, call_errors
from tdb_client.events import Event, collected_async, inference_results
from tdb_client.health import HealthStatus
from tdb_client.in_flight import allowed_in_flight, each_in_flight
from tdb_client.inference import BackwardRule, InferenceSubRequest, Loss, as_texts, chosen_loss
from tdb_client.interventions import AblationWords, TraceWords
from tdb_client.model_info import ModelInfo
from tdb_client.nodes import NodeType
from tdb_client.requests import (
    AnySubRequest,
    AttentionComponent,
    DebugSubRequest,
    MlpComponent,
    ResidualStreamComponent,
    TokenWords,
)
from tdb_client.results import EstimatedCost, InferenceResult, PromptTokens
from tdb_client.streams import EventReader
from tdb_client.token_words import as_tokens


class AsyncClient(ClientCore):
    """Client for asyncio: the same methods with `await`, and `async for` over streams.

    It belongs to the event loop that runs when it is made.

    Example:
        async with AsyncClient() as client:
            prompts = ["When Mary and John went to the store, John gave a drink to", "John gave a drink to"]
            results = await asyncio.gather(*(client.debug(prompt, " Mary") for prompt in prompts))

    Its arguments are those of Client. Every method raises a CallError when the call fails and a ResponseError
    when the answer is malformed.
    """

    _open = staticmethod(Connection.open_async)

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
        prompt: Chat,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        k: int = 10,
        ablate: AblationWords | Sequence[AblationWords] = (),
        trace: TraceWords | None = None,
        downstream: TraceWords | None = None,
        mlp: MlpComponent = "neuron",
        attention: AttentionComponent = "attention_head",
        residual_stream: ResidualStreamComponent | Sequence[ResidualStreamComponent] = (),
        hide_early_layers: bool = False,
        add_bos: bool | None = None,
        backward_rule: BackwardRule = "gradient",
        attention_pattern_gradients: bool = False,
        loss: Loss | None = None,
        token_lists: bool = True,
        top_k_sums: bool = True,
        baseline: str | Sequence[Chat] = (),
        only_these: CircuitWords | Sequence[CircuitWords] | None = None,
        node_types: Sequence[NodeType] = WHOLE_NODE_TYPES,
        chat: bool = False,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> DebugResult:
        """Explains why the model predicts `target` rather than `distractor`; see Client.debug."""
        if chat or not isinstance(prompt, str):
            baseline = [await self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
            prompt, add_bos = await self.chat_prompt(prompt, timeout=timeout), add_bos or False
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
            residual_stream=residual_stream,
            hide_early_layers=hide_early_layers,
            add_bos=add_bos,
            backward_rule=backward_rule,
            attention_pattern_gradients=attention_pattern_gradients,
            loss=loss,
            token_lists=token_lists,
            top_k_sums=top_k_sums,
            baseline=baseline,
            only_these=only_these,
            node_types=node_types,
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
        """Explains several prompts, of the same number of tokens or not; see Client.debug_many."""
        seconds = self._connection.seconds(timeout)

        async def answers(share: Share, request_id: str) -> list[DebugResult]:
            shared = [sub_requests[number] for number in share.numbers]

            def stream(seconds: float | None) -> AsyncGenerator[Event]:
                return self.stream_debug(shared, timeout=seconds, request_id=request_id)

            events = await collected_async(stream, seconds, share.renumbering(on_event))
            return await self._run(self._debug_results(shared, events), CHECK_SECONDS)

        shares = await self._run(self._debug_shares(sub_requests), timeout)
        return await self._in_order(Calls(shares, request_id), answers)

    async def ablate_each(
        self,
        prompt: Chat,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        nodes: AblationWords | Sequence[AblationWords] = (),
        *,
        loss: Loss | None = None,
        baseline: str | Sequence[Chat] = (),
        add_bos: bool | None = None,
        chat: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> AblationEffects:
        """Says how the objective changes with each node ablated by itself; see Client.ablate_each."""
        if chat or not isinstance(prompt, str):
            prompt, add_bos = await self.chat_prompt(prompt, timeout=timeout), add_bos or False
            baseline = [await self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
        objective = chosen_loss(target, distractor, loss)
        flow = self._ablation_requests(prompt, objective, nodes, add_bos, baseline)
        whole = await self._run(flow, timeout)
        requests = requests_for_each(whole)

        async def answers(share: Share, request_id: str) -> list[InferenceResult]:
            shared = [requests[number] for number in share.numbers]
            return await self.infer(shared, timeout=timeout, request_id=request_id)

        shares = await self._run(self._infer_shares(requests), timeout)
        parts: dict[Calls, list[InferenceResult]] = {one: [] for one in Calls.apart(shares, request_id)}

        async def run(calls: Calls) -> None:
            parts[calls] = await self._in_order(calls, answers)

        try:
            await each_in_flight(list(parts), run, allowed_in_flight(self._known_limits))
        except CallError as error:
            raise in_words_of_nodes(error) from None
        return effects(whole, [answer for part in parts.values() for answer in part])

    async def with_attention(
        self, results: Sequence[DebugResult], *, n_heads: int = N_HEADS, timeout: float | None = None
    ) -> list[DebugResult]:
        """Adds the whole attention of the heads that matter most; see Client.with_attention."""
        whole = list(results)
        for numbers in numbers_by_call(results):
            of_call = [results[number] for number in numbers]
            if requests := attention_requests(of_call, n_heads):
                answers = with_answers(of_call, await self.infer(requests, timeout=timeout))
                for number, one in zip(numbers, answers, strict=True):
                    whole[number] = one
        return whole

    async def circuit(
        self,
        prompt: Chat,
        target: TokenWords | Sequence[TokenWords],
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        baseline: str | Sequence[Chat] = (),
        faithfulness: float = 0.85,
        rank_by: RankBy = "act_times_grad",
        max_calls: int = MAX_CALLS,
        add_bos: bool | None = None,
        chat: bool = False,
        timeout: float | None = None,
        on_measured: Callable[[int], object] | None = None,
    ) -> Circuit:
        """Finds the few whole heads and MLPs that do most of it; see Client.circuit."""
        if chat or not isinstance(prompt, str):
            baseline = [await self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
            prompt, add_bos = await self.chat_prompt(prompt, timeout=timeout), add_bos or False
        question = CircuitQuestion(
            prompt,
            as_tokens(target, "target"),
            as_tokens(distractor, "distractor"),
            as_texts(baseline, "baseline"),
            add_bos,
            faithfulness,
            rank_by,
            max_calls,
        )
        async with aclosing(self.stream_circuit(question, timeout=timeout)) as search:
            async for found in search:
                if isinstance(found, Circuit):
                    return found
                if on_measured is not None:
                    on_measured(found.n_calls)
        raise IncompleteResponseError("the search has ended without a circuit")

    async def stream_circuit(
        self, question: CircuitQuestion, *, timeout: float | None = None
    ) -> AsyncGenerator[CircuitsMeasured | Circuit]:
        """Yields what each call has measured, at the end the circuit; see Client.stream_circuit."""
        model, n_per_call = await self._run(self._circuit_size(question), timeout)
        search, n_calls = find_circuit(question, model, n_per_call), 0
        wanted = next(search)
        while True:
            answers = await self.infer(wanted, timeout=timeout)
            n_calls += 1
            yield CircuitsMeasured.by(n_calls, wanted, answers)
            try:
                wanted = search.send(answers)
            except StopIteration as done:
                yield done.value
                return

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

    async def edges(
        self,
        prompt: str,
        target: TokenWords | Sequence[TokenWords] = (),
        distractor: TokenWords | Sequence[TokenWords] = (),
        *,
        baseline: str | Sequence[str],
        loss: Loss | None = None,
        method: EdgeMethod = "eap",
        steps: int | None = None,
        k: int = 100,
        matrix: bool = False,
        add_bos: bool | None = None,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> Edges:
        """Scores the edges between components; see Client.edges."""
        sub_request = EdgesSubRequest.of(
            prompt,
            target,
            distractor,
            baseline=baseline,
            loss=loss,
            method=method,
            steps=steps,
            k=k,
            matrix=matrix,
            add_bos=add_bos,
        )
        (found,) = await self.edges_many(
            [sub_request], timeout=timeout, request_id=request_id, on_event=on_event
        )
        return found

    async def edges_many(
        self,
        sub_requests: Sequence[EdgesSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> list[Edges]:
        """Scores the edges of several prompts of the same length in one call; see `edges`."""

        def stream(seconds: float | None) -> AsyncGenerator[Event]:
            return self.stream_edges(sub_requests, timeout=seconds, request_id=request_id)

        seconds = self._connection.seconds(timeout)
        events = await collected_async(stream, seconds, on_event)
        return await self._run(self._edges_results(sub_requests, events), CHECK_SECONDS)

    async def stream_debug(
        self, sub_requests: Sequence[DebugSubRequest], *, timeout: float | None = None, request_id: str = ""
    ) -> AsyncGenerator[Event]:
        """Yields events as they arrive: Started, then ResultReady and Values, then Finished.

        Closing the iterator cancels the call.
        """
        call = self._debug_call(sub_requests, request_id)
        async with aclosing(self._events(call, sub_requests, timeout)) as events:
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
        call = self._infer_call(sub_requests, request_id)
        async with aclosing(self._events(call, sub_requests, timeout)) as events:
            async for event in events:
                yield event

    async def stream_edges(
        self,
        sub_requests: Sequence[EdgesSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
    ) -> AsyncGenerator[Event]:
        """Yields the events of edges as they arrive; as stream_debug."""
        call = self._edges_call(sub_requests, request_id)
        async with aclosing(self._events(call, sub_requests, timeout)) as events:
            async for event in events:
                yield event

    async def estimate(
        self, sub_requests: Sequence[AnySubRequest], *, timeout: float | None = None
    ) -> EstimatedCost:
        """Checks sub-requests of one kind and says what they would cost, without running them."""
        return await self._run(self._estimated(sub_requests), timeout)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Describes the model, its autoencoders, what can be asked of it and every limit."""
        return await self._run(self._model_info(), timeout)

    async def tokenize(
        self, text: str, *, add_bos: bool | None = None, timeout: float | None = None
    ) -> PromptTokens:
        """Splits text into the model's tokens, as prompts are split; see Client.tokenize."""
        return await self._run(self._tokenized(text, add_bos), timeout)

    async def chat_prompt(
        self, chat: Chat, *, system: str | None = None, timeout: float | None = None
    ) -> str:
        """The prompt that the model's chat template makes of a chat; see Client.chat_prompt."""
        return await self._run(self._chat_prompt(chat, system), timeout)

    async def detokenize(
        self, token_ids: Sequence[int], *, add_bos: bool | None = None, timeout: float | None = None
    ) -> str:
        """Joins tokens into text; bytes that are not UTF-8 become U+FFFD. `add_bos` as in `tokenize`."""
        return await self._run(self._detokenized(token_ids, add_bos), timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """Says whether the server, or one service by full name, is ready: `SERVING` when it is."""
        return await self._run(self._health(service), timeout)

    async def _in_order(
        self, calls: Calls, answers: Callable[[Share, str], Awaitable[list[Result]]]
    ) -> list[Result]:
        """Makes calls one after the other, and puts what they answer in the order of the sub-requests."""
        found: dict[int, Result] = {}
        for share, request_id in calls:
            try:
                found |= dict(zip(share.numbers, await answers(share, request_id), strict=True))
            except CallError as error:
                calls.failed(share, error)
        return [found[number] for number in sorted(found)]

    async def _run(self, flow: Flow[Result], timeout: float | None) -> Result:
        """Makes the calls of a flow."""
        response: Any = None
        go_on: Callable[[Any], Call] = flow.send
        while True:
            try:
                call = go_on(response)
            except StopIteration as done:
                result: Result = done.value
                return result
            try:
                with call_errors(self._connection.server):
                    response, go_on = await call.method(call.request, **self._with(timeout)), flow.send
            except CallError as error:
                response, go_on = error, flow.throw

    async def _events(
        self, flow: Flow[Call], sub_requests: Sequence[AnySubRequest], timeout: float | None
    ) -> AsyncGenerator[Event]:
        """Makes the call that a flow leads to."""
        wanted = await self._run(flow, timeout)
        reader, version_reply = EventReader(len(sub_requests)), None
        with call_errors(self._connection.server):
            call = wanted.method(wanted.request, **self._with(timeout))
            try:
                async for message in call:
                    version_reply = version_reply or self._ask_for_version(self._models.GetModelInfo)
                    for event in self._read(reader, message, sub_requests):
                        yield event
            finally:
                call.cancel()
        reader.end()
        if version_reply is not None:
            with suppress(grpc.RpcError):  # the call itself went well
                self._versions.compare(self._described_by(await version_reply).api_version)

"""The client for ordinary programs and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
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
from tdb_client.events import Event, collected, inference_results
from tdb_client.health import HealthStatus
from tdb_client.in_flight import allowed_in_flight, in_flight
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


class Client(ClientCore):
    """Talks to a transformer debugger server. Threads may share one.

    It connects with the first call; close it, or leave its `with`, when done. `tdb doctor` says why a server
    cannot be reached.

    Example:
        client = Client("127.0.0.1:50051")
        client.model_info().n_layers
        client.tokenize("When Mary and John").tokens
        client.debug("When Mary and John went to the store, John gave a drink to", " Mary", " John")

    Args:
        server: `HOST:PORT` of the server; `dns:///NAME:PORT` or `ipv4:ADDRESS:PORT,ADDRESS:PORT` for several,
            which get calls in turn.
        timeout: seconds that each call may take unless it says otherwise; None for no limit.
        tls: how to check the server's certificate; None for a connection in clear.
        token: bearer token that is sent with every call.
        max_receive_bytes: largest message that is taken; None for gRPC's 4 MiB.
        priority: of its calls: `interactive`, or `sweep` for many that a program asks for, which let others
            go first.
        channel: one that somebody else has made, such as with interceptors, in place of one of its own; of
            gRPC, and of asyncio where the client is. It is closed with the client.

    Every method raises a CallError when the call fails and a ResponseError when the answer is malformed.
    """

    _open = staticmethod(Connection.open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls in progress are cancelled."""
        self._channel.close()

    def debug(
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
        """Explains why the model predicts `target` rather than `distractor` after `prompt`.

        Example:
            prompt = "When Mary and John went to the store, John gave a drink to"
            result = client.debug(prompt, " Mary", " John")
            result                                      # in a notebook, the whole answer as a page
            result.loss                                 # logit of " Mary" less that of " John"
            result.to_frame().nlargest(10, "act_times_grad")

            # What changes without a head, or with a neuron set to 2? Tokens count from 0, or from the end.
            client.debug(prompt, " Mary", " John", ablate=[head(23, 1, token=-1), "L20 neuron 426 @ 13 = 2"])

            # Why is a neuron active? Why does a head look from the last token to token 9?
            client.debug(prompt, trace=neuron(20, 426, token=-1))
            client.debug(prompt, trace="L23 head 3 @ -1 -> 9 through Q")  # Trace(head(23, 3, ...), "Q")

            # What is it about these names, in this order? And what if a head saw them the other way round?
            other = "When John and Mary went to the store, Mary gave a drink to"
            client.debug(prompt, " Mary", " John", baseline=other, ablate="L23 head 3 @ -1 = baseline")

            # Of a model that chats: why does its answer begin so?
            client.debug("Is Paris in France?", "Yes", "No", chat=True)

        Args:
            prompt: the prompt. Messages, such as `{"role": "user", "content": "Hello"}`, are a chat.
            target: a token, or tokens, whose logits after the prompt count for the objective: as text, where
                the space in front belongs to it, or as vocabulary indices, such as 198 for a line's end. A
                trace needs none, unless it is through V without `downstream`.
            distractor: tokens whose logits count against it.
            k: how many nodes to take from each end of each ranking.
            ablate: nodes to set to 0, or Ablations to other values, or their spelling: `"L9 head 6 @ -1"` for
                all that the last token attends to, `"L9 head 6 @ -1 -> 2"` for what it pays to token 2 alone;
                `= 2.5`, `= baseline`, `* 0.5` and `+ 2` say to what: see help(Ablation).
            trace: a node to explain in place of the loss; heads need a Trace that says through what.
            downstream: for a V trace, the node that gives it its direction; None means the loss.
            mlp: what MLPs are taken apart into; latents need an autoencoder or a transcoder.
            attention: what attention is taken apart into; latents need an autoencoder.
            residual_stream: latents of the residual stream to list beside the others, each of a dictionary
                that is loaded. Their direct effects repeat each other from layer to layer, and those of MLPs
                and attention: never add them up.
            hide_early_layers: with ablations, leave out nodes of layers before the first ablated layer.
            add_bos: whether the beginning-of-text token stands in front of the prompt; then it is token 0,
                and all others are one further. None means as the model's own tokenizer does; in a chat, that
                it stands there where the template writes it.
            backward_rule: how gradients go back through what is not linear: `gradient`, `frozen_norms`,
                `relp` or `gim`.
            attention_pattern_gradients: with `relp`, whether attention patterns pass gradients on.
            loss: another objective in place of `target` and `distractor`: log-probabilities, probabilities,
                weighted targets, the divergence from the baseline's prediction, a vector in the residual
                stream; at any token.
            token_lists: whether every node gets its lists of tokens, of which most of a large answer is made.
            top_k_sums: whether `result.results["topKComponents"]` has sums, half of the answer about a long
                prompt; `result.sums` has those of neurons and heads in any case.
            baseline: a prompt to compare with, or several, of as many tokens each. Act times grad and direct
                effects are then of the difference to it: what about *this* prompt makes the difference? In a
                chat, what the user says there.
            only_these: nodes that alone are kept, such as `"L9 whole head 6"` or `"L5 mlp @ -1"`, where all
                others of `node_types` are set to the baseline's, or without one to 0; `result.circuit` says
                how much of the objective is left.
            node_types: the types whose other nodes are set.
            chat: whether the prompt is what the user says in a chat: `chat_prompt` makes the prompt of it.
            timeout: seconds the call may take; None for the client's.
            request_id: an id for the server's logs.
            on_event: called with every event as it arrives, to show progress.

        Returns:
            The node table, sums, top logits and objective values.

        Raises:
            NodeError: a node is misspelled or does not fit the prompt.
            ChatTemplateError: as `chat_prompt`.
        """
        if chat or not isinstance(prompt, str):
            baseline = [self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
            prompt, add_bos = self.chat_prompt(prompt, timeout=timeout), add_bos or False
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
        results = self.debug_many([sub_request], timeout=timeout, request_id=request_id, on_event=on_event)
        return results[0]

    def debug_many(
        self,
        sub_requests: Sequence[DebugSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> list[DebugResult]:
        """Explains several prompts, of the same number of tokens or not, in as few calls as the server takes.

        Of results of one call row i is the same node; of results of different calls it is not. Sub-requests
        of one prompt share a call, always, and others of as many tokens share it as far as limits allow:
        `result.call` is equal where results are of one call.

        Example:
            words = {"prompt": prompt, "target": " Mary", "distractor": " John"}
            ablated = DebugSubRequest.of(**words, ablate="L23 head 1 @ -1")
            before, after = client.debug_many([DebugSubRequest.of(**words), ablated])
            after.nodes.direct_effect - before.nodes.direct_effect
            after.show(before=before)

        Args:
            sub_requests: what to explain.
            timeout: seconds that each call may take; None for the client's.
            request_id: of the first call; others get a number behind it, such as `mine-2`.
            on_event: called with every event as it arrives: calls begin with Started and end with Finished,
                one after the other, and sub-requests are numbered as here.

        Returns:
            A result for each sub-request, in order.

        Raises:
            InvalidValueError: of one prompt there are more sub-requests than a call may have.
        """
        seconds = self._connection.seconds(timeout)

        def answers(share: Share, request_id: str) -> list[DebugResult]:
            shared = [sub_requests[number] for number in share.numbers]

            def stream(seconds: float | None) -> Generator[Event]:
                return self.stream_debug(shared, timeout=seconds, request_id=request_id)

            events = collected(stream, seconds, share.renumbering(on_event))
            return self._run(self._debug_results(shared, events), CHECK_SECONDS)

        shares = self._run(self._debug_shares(sub_requests), timeout)
        return self._in_order(Calls(shares, request_id), answers)

    def ablate_each(
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
        """Says how the objective changes with each node ablated by itself, and nothing else of the runs.

        It is far cheaper than as many `debug`: use it to check what act × grad estimates, for many nodes.

        Example:
            result = client.debug(prompt, " Mary", " John")
            strongest = [result.nodes.nodes[row] for row in result.nodes.strongest()[:50]]
            heads = [node for node in strongest if node.type == "attention_head"]
            effects = client.ablate_each(prompt, " Mary", " John", heads)
            effects.objective, effects.change
            effects.to_frame()

        Args:
            prompt: as in `debug`.
            target: as in `debug`; at least one, unless there is another loss.
            distractor: as in `debug`.
            nodes: as `ablate` of `debug` takes them, but each by itself: any number of them.
            loss: another objective in place of `target` and `distractor`, as in `debug`.
            baseline: prompts whose values nodes are set to that say so: `"L9 head 6 @ -1 = baseline"`.
            add_bos: as in `debug`.
            chat: as in `debug`.
            timeout: seconds that each call may take; None for the client's. There may be several.
            request_id: of the first call; others get a number behind it, such as `mine-2`.

        Returns:
            The objective without ablation and with each, in the order of `nodes`.

        Raises:
            NodeError: as `debug`.
            InvalidValueError: there are both tokens and another loss in their place.
            ChatTemplateError: as `chat_prompt`.
        """
        if chat or not isinstance(prompt, str):
            prompt, add_bos = self.chat_prompt(prompt, timeout=timeout), add_bos or False
            baseline = [self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
        objective = chosen_loss(target, distractor, loss)
        flow = self._ablation_requests(prompt, objective, nodes, add_bos, baseline)
        whole = self._run(flow, timeout)
        requests = requests_for_each(whole)

        def answers(share: Share, request_id: str) -> list[InferenceResult]:
            shared = [requests[number] for number in share.numbers]
            return self.infer(shared, timeout=timeout, request_id=request_id)

        shares = self._run(self._infer_shares(requests), timeout)
        try:
            jobs = [partial(self._in_order, one, answers) for one in Calls.apart(shares, request_id)]
            parts = in_flight(jobs, allowed_in_flight(self._known_limits))
        except CallError as error:
            raise in_words_of_nodes(error) from None
        return effects(whole, [answer for part in parts for answer in part])

    def with_attention(
        self, results: Sequence[DebugResult], *, n_heads: int = N_HEADS, timeout: float | None = None
    ) -> list[DebugResult]:
        """Adds the whole attention of the heads that matter most; a debug answer lists some pairs alone.

        Example:
            (result,) = client.with_attention([client.debug(prompt, " Mary", " John")])
            result.attention["L23 head 3"][-1]  # what the last token pays to each
            result.show()                       # the page has it, too

        Args:
            results: of `debug` or `debug_many`.
            n_heads: of how many heads; fewer where the prompt is long, and none in the longest. Results of
                one call have the same heads.
            timeout: as in `debug`, for each call that there was.
        """
        whole = list(results)
        for numbers in numbers_by_call(results):
            of_call = [results[number] for number in numbers]
            if requests := attention_requests(of_call, n_heads):
                answers = with_answers(of_call, self.infer(requests, timeout=timeout))
                for number, one in zip(numbers, answers, strict=True):
                    whole[number] = one
        return whole

    def circuit(
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
        """Finds the few whole heads and MLPs that do most of what makes `target` likelier than `distractor`.

        All others are set to what they are in the baseline. Takes some dozens of calls' work: for a model of
        135 million weights on two cores a minute or so.

        Example:
            other = "When John and Mary went to the store, Mary gave a drink to"
            circuit = client.circuit(prompt, " Mary", " John", baseline=other)
            len(circuit), circuit.faithfulness, circuit.share
            [(len(one), one.faithfulness) for one in circuit.path]
            circuit.save("circuit.json")            # Circuit.load("circuit.json") reads it

        Args:
            prompt: the prompt.
            target: as in `debug`.
            distractor: as in `debug`.
            baseline: a prompt of as many tokens, or several, in which the question is decided otherwise, such
                as with names exchanged. Without any, others are set to 0.
            faithfulness: share of the objective that the circuit must keep.
            rank_by: what components are ranked by before any is measured.
            max_calls: calls that may measure circuits, as many as the server takes in a batch each.
            add_bos: as in `debug`.
            chat: as in `debug`.
            timeout: seconds that each call may take.
            on_measured: called after each call with the number of calls so far.

        Raises:
            InvalidValueError: the baseline has the same objective as the prompt.
        """
        if chat or not isinstance(prompt, str):
            baseline = [self.chat_prompt(one, timeout=timeout) for one in chats(baseline)]
            prompt, add_bos = self.chat_prompt(prompt, timeout=timeout), add_bos or False
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
        for found in self.stream_circuit(question, timeout=timeout):
            if isinstance(found, Circuit):
                return found
            if on_measured is not None:
                on_measured(found.n_calls)
        raise IncompleteResponseError("the search has ended without a circuit")

    def stream_circuit(
        self, question: CircuitQuestion, *, timeout: float | None = None
    ) -> Generator[CircuitsMeasured | Circuit]:
        """Searches as `circuit` does, and yields what each call has measured; at the end the circuit.

        Closing the iterator ends the search.
        """
        model, n_per_call = self._run(self._circuit_size(question), timeout)
        search, n_calls = find_circuit(question, model, n_per_call), 0
        wanted = next(search)
        while True:
            answers = self.infer(wanted, timeout=timeout)
            n_calls += 1
            yield CircuitsMeasured.by(n_calls, wanted, answers)
            try:
                wanted = search.send(answers)
            except StopIteration as done:
                yield done.value
                return

    def infer(
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

        Example:
            wanted = {"pairs": DerivedAttentionScalarsSpec("attn_qk_probs", layer=23, head=3)}
            client.infer([InferenceSubRequest(prompt, results=wanted)])[0].results["pairs"].scalars
        """

        def stream(seconds: float | None) -> Generator[Event]:
            return self.stream_infer(sub_requests, timeout=seconds, request_id=request_id)

        seconds = self._connection.seconds(timeout)
        return inference_results(collected(stream, seconds, on_event))

    def edges(
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
        """Scores the edges between components, by what they carry when the prompt is not the baseline.

        Example:
            prompt = "When Mary and John went to the store, John gave a drink to"
            other = "When Mary and John went to the store, Mary gave a drink to"
            edges = client.edges(prompt, " Mary", " John", baseline=other, matrix=True)
            next(iter(edges))                       # the strongest: from whom, to whom, its score
            edges.to_frame().nlargest(10, "score")
            edges.to_mib_json("importances.json")   # for MIB's circuit track
            edges.to_attribution_graph("graph.json")  # for viewers of attribution graphs

        Args:
            prompt: the prompt.
            target: a token, or tokens, whose logits after the prompt count for the objective; see `debug`.
            distractor: tokens whose logits count against it.
            baseline: a prompt, or prompts, to compare with, with as many tokens as the prompt.
            loss: another objective in place of `target` and `distractor`, as in `debug`.
            method: `eap` takes gradients at the prompt; `eap_ig` the mean of those in several runs between
                the baseline and the prompt.
            steps: how many runs; for `eap_ig` alone, None for 5.
            k: how many edges to list, those of the largest absolute scores.
            matrix: whether the scores of all edges are wanted too.
            add_bos: whether the beginning-of-text token stands in front of the prompts.
            timeout: seconds the call may take; None for the client's.
            request_id: an id for the server's logs.
            on_event: called with every event as it arrives, to show progress.

        Raises:
            InvalidValueError: there are both tokens and another loss in their place.
        """
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
        (found,) = self.edges_many([sub_request], timeout=timeout, request_id=request_id, on_event=on_event)
        return found

    def edges_many(
        self,
        sub_requests: Sequence[EdgesSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
        on_event: Callable[[Event], object] | None = None,
    ) -> list[Edges]:
        """Scores the edges of several prompts of the same length in one call; see `edges`."""

        def stream(seconds: float | None) -> Generator[Event]:
            return self.stream_edges(sub_requests, timeout=seconds, request_id=request_id)

        seconds = self._connection.seconds(timeout)
        events = collected(stream, seconds, on_event)
        return self._run(self._edges_results(sub_requests, events), CHECK_SECONDS)

    def stream_debug(
        self, sub_requests: Sequence[DebugSubRequest], *, timeout: float | None = None, request_id: str = ""
    ) -> Generator[Event]:
        """Yields events as they arrive: Started, then ResultReady and Values, then Finished.

        Closing the iterator cancels the call.
        """
        yield from self._events(self._debug_call(sub_requests, request_id), sub_requests, timeout)

    def stream_infer(
        self,
        sub_requests: Sequence[InferenceSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Generator[Event]:
        """Yields the events of general sub-requests as they arrive; as stream_debug."""
        yield from self._events(self._infer_call(sub_requests, request_id), sub_requests, timeout)

    def stream_edges(
        self,
        sub_requests: Sequence[EdgesSubRequest],
        *,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Generator[Event]:
        """Yields the events of edges as they arrive; as stream_debug."""
        yield from self._events(self._edges_call(sub_requests, request_id), sub_requests, timeout)

    def estimate(
        self, sub_requests: Sequence[AnySubRequest], *, timeout: float | None = None
    ) -> EstimatedCost:
        """Checks sub-requests of one kind and says what they would cost, without running them."""
        return self._run(self._estimated(sub_requests), timeout)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Describes the model, its autoencoders, what can be asked of it and every limit."""
        return self._run(self._model_info(), timeout)

    def tokenize(
        self, text: str, *, add_bos: bool | None = None, timeout: float | None = None
    ) -> PromptTokens:
        """Splits text into the model's tokens, as prompts are split; without the beginning-of-text token.

        Args:
            text: the text.
            add_bos: True puts that token in front, as prompts of some models have it.
            timeout: as in `debug`.
        """
        return self._run(self._tokenized(text, add_bos), timeout)

    def chat_prompt(self, chat: Chat, *, system: str | None = None, timeout: float | None = None) -> str:
        """The prompt that the model's chat template makes of a chat, up to where the model's answer begins.

        Send it with `add_bos=False`: where the model's chats begin with the beginning-of-text token, the
        template has written it. What is appended to it is what the model has already answered.

        Example:
            prompt = client.chat_prompt("Is Paris in France?", system="Answer in one word.")
            client.debug(prompt, "Yes", "No", add_bos=False)
            client.debug(prompt + "No,", " Paris", " it", add_bos=False)

        Args:
            chat: what the user says, or messages such as `{"role": "user", "content": "Hello"}`.
            system: what a system message in front of them says; None for none.
            timeout: as in `debug`.

        Raises:
            ChatTemplateError: the model has no template, it refuses the chat, or jinja2 is not installed.
            InvalidValueError: something is no message.
        """
        return self._run(self._chat_prompt(chat, system), timeout)

    def detokenize(
        self, token_ids: Sequence[int], *, add_bos: bool | None = None, timeout: float | None = None
    ) -> str:
        """Joins tokens into text; bytes that are not UTF-8 become U+FFFD. `add_bos` as in `tokenize`."""
        return self._run(self._detokenized(token_ids, add_bos), timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> HealthStatus:
        """Says whether the server, or one service by full name, is ready: `SERVING` when it is."""
        return self._run(self._health(service), timeout)

    def _in_order(self, calls: Calls, answers: Callable[[Share, str], list[Result]]) -> list[Result]:
        """Makes calls one after the other, and puts what they answer in the order of the sub-requests."""
        found: dict[int, Result] = {}
        for share, request_id in calls:
            try:
                found |= dict(zip(share.numbers, answers(share, request_id), strict=True))
            except CallError as error:
                calls.failed(share, error)
        return [found[number] for number in sorted(found)]

    def _run(self, flow: Flow[Result], timeout: float | None) -> Result:
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
                    response, go_on = call.method(call.request, **self._with(timeout)), flow.send
            except CallError as error:
                response, go_on = error, flow.throw

    def _events(
        self, flow: Flow[Call], sub_requests: Sequence[AnySubRequest], timeout: float | None
    ) -> Generator[Event]:
        """Makes the call that a flow leads to."""
        wanted = self._run(flow, timeout)
        reader, version_reply = EventReader(len(sub_requests)), None
        with call_errors(self._connection.server):
            call = wanted.method(wanted.request, **self._with(timeout))
            try:
                for message in call:
                    version_reply = version_reply or self._ask_for_version(self._models.GetModelInfo.future)
                    yield from self._read(reader, message, sub_requests)
            finally:
                call.cancel()
        reader.end()
        if version_reply is not None:
            with suppress(grpc.RpcError, grpc.FutureCancelledError):  # the call itself went well
                self._versions.compare(self._described_by(version_reply.result()).api_version)
